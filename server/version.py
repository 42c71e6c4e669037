"""The version of this server."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def server_version() -> str:
    """The installed version of this distribution."""
    try:
        return version("autosteer-server")
    except PackageNotFoundError:
        return "0+unknown"
