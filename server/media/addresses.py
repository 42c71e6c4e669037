"""Which addresses a server may fetch from: public unicast ones, and nothing that leads anywhere else.

Written out from the IANA special-purpose address registries instead of `ipaddress.is_global`, whose answers differ
between releases of Python. Whatever embeds an IPv4 address (mapped, NAT64, 6to4, Teredo, ISATAP) is refused
as a whole: what it leads to is up to routers that nobody here can ask.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

NOT_PUBLIC_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
            "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
            "168.63.129.16/32",  # Azure's host agent: a public number that never leaves the host
        ),
    )
)  # fmt: skip
PUBLIC_V6 = IPv6Network("2000::/3")  # all that IANA has given out as global unicast
NOT_PUBLIC_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo, ORCHID
            "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
        ),
    )
)  # fmt: skip
ISATAP = (0x00005EFE, 0x02005EFE)  # the upper half of an interface identifier that ends in an IPv4 address


def is_public(address: str) -> bool:
    """Whether an address as a resolver gives it is a public one. Anything that is no plain address is not."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return _public_v4(parsed) if isinstance(parsed, IPv4Address) else _public_v6(parsed)


def _public_v4(address: IPv4Address) -> bool:
    return not any(address in network for network in NOT_PUBLIC_V4)


def _public_v6(address: IPv6Address) -> bool:
    return (
        address.scope_id is None
        and address in PUBLIC_V6
        and not any(address in network for network in NOT_PUBLIC_V6)
        and (int(address) >> 32) & 0xFFFFFFFF not in ISATAP
    )
