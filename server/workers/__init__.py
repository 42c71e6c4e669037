"""Processes that work for this one and can be killed: how they are started, asked and ended."""
