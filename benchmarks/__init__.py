"""Speed and memory of the server, each figure as a ratio against a baseline of the same run."""
