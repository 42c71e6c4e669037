"""The engine and its process: who runs in a step, the step itself, and the HTTP process's client of it."""
