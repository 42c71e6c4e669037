"""Attackers against one server while others chat."""
