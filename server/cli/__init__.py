"""The command line, above everything else; nothing imports it."""
