"""What is watched: metrics, drift of scores, the log, trace context."""
