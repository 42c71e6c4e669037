"""Attacks of single clients, each a plain function that a test, a benchmark or a siege calls against a server."""
