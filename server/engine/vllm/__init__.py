"""The engine on vLLM. Only `core`, `model` and `start` import it, and only where it is chosen."""
