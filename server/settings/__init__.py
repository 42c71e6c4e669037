"""Settings, read once from options, environment and file, and frozen."""
