"""What is told of a request when it has ended: the call, the audit log, traces, the access log."""
