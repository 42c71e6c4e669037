"""Whether an address is reached from its own machine alone."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone. Of names only `localhost` is known to be."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
