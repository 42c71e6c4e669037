"""HTTP on the wire: uvicorn, limits of a connection, bodies, server-sent events."""
