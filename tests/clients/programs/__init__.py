"""A program for each client, which its own environment runs from this folder."""
