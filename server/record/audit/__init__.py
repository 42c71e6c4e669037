"""The audit log: one record per request, written off the event loop to a file or a database."""
