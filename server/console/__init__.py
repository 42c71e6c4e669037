"""The console: pages to talk to the guarded model and to see what the guard saw, and the read-only `/admin` API."""
