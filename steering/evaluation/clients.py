"""Clients of OpenAI-compatible servers."""

from __future__ import annotations

import os

from openai import AsyncOpenAI

from steering.errors import RunError

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")


def open_client(url: str, api_key_env: str, seconds: float, retries: int) -> AsyncOpenAI:
    """A client of the server at `url`, with the key that a variable holds. Raises RunError."""
    key = os.environ.get(api_key_env) or "none"
    try:
        return AsyncOpenAI(base_url=url, api_key=key, timeout=seconds, max_retries=retries)
    except (ValueError, ImportError) as error:  # of the proxies in the environment, a desktop's socks:// among them
        used = [name for name in os.environ if name.upper() in _PROXIES and not _is_http(os.environ[name])]
        if not used:
            raise
        raise RunError(f"the proxy in {' and '.join(used)} cannot be used, unset it: {error}") from error


def _is_http(proxy: str) -> bool:
    return "://" not in proxy or proxy.lower().startswith(("http://", "https://"))
