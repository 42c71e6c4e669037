"""The routes, a module for each kind: `routes(service)` makes its router."""
