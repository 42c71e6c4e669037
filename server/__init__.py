"""The server: HTTP, policies, the scheduler and the engine loop. Only this package knows FastAPI."""
