"""Reviews of what was flagged: an index of the audit log, labels beside it. Blocks: for worker threads."""
