"""Hosts as an operator writes them, and as URLs want them."""

import ipaddress

EVERYWHERE = "*"
"""All of the machine's addresses, IPv4 and IPv6."""
# Where a client on the same machine finds who listens on all addresses.
_LOCAL = {EVERYWHERE: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def is_ipv6(host: str) -> bool:
    """Whether it is an IPv6 address, without brackets."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def unbracketed(host: str) -> str:
    """``[::1]`` -> ``::1``."""
    inner = host.removeprefix("[").removesuffix("]")
    return inner if host == f"[{inner}]" and is_ipv6(inner) else host


def in_url(host: str) -> str:
    """``::1`` -> ``[::1]``: in a URL the colon belongs to the port."""
    return f"[{host}]" if is_ipv6(host) else host


def local(host: str) -> str:
    """Where to connect to, in a URL, for what listens on ``host`` of this machine."""
    return in_url(_LOCAL.get(host, host))
