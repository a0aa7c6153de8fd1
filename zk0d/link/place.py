"""Which addresses count as one place, where each place has a bounded share of what strangers may take.

Not access control: whoever has many networks has many places.
"""

from __future__ import annotations

import ipaddress


def place(address: str) -> str:
    """Where an address `HOST:PORT` is: the host, of IPv6 its /64, which is one customer."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
