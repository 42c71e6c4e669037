"""Requests to servers on loopback. `httpx.get` reads the system's certificates for each, which takes 30 ms."""

from __future__ import annotations

from typing import Any

import httpx


def get(url: str, **options: Any) -> httpx.Response:
    """As `httpx.get`, for `http` alone."""
    with httpx.Client(verify=False) as client:
        return client.get(url, **options)


def post(url: str, **options: Any) -> httpx.Response:
    """As `httpx.post`, for `http` alone."""
    with httpx.Client(verify=False) as client:
        return client.post(url, **options)
