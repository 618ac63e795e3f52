"""Which addresses a webhook may go to: those of the public internet, and no others.

A name is looked at when it has been resolved, and the address that was looked at is the one that is
connected to. Looking at the name beforehand would be of no use: it may point elsewhere a moment
later (DNS rebinding).
"""

import socket
from errno import EACCES
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver
from aiohttp.connector import AddrInfoType, TCPConnector

# An IPv4 address may come in the clothes of an IPv6 one, and a gateway would undress it.
_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")


class NotPublic(OSError):
    """The address is in a network that a webhook must not reach."""


def is_public(address: str) -> bool:
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        carried = _carried(ip)
        if carried is not None:
            return is_public(str(carried))
        if ip.is_site_local or ip in _LOCAL_NAT64:
            return False
    return ip.is_global and not ip.is_multicast


def _carried(ip: IPv6Address) -> IPv4Address | None:
    if ip.ipv4_mapped or ip.sixtofour:
        return ip.ipv4_mapped or ip.sixtofour
    if ip in _NAT64 or ip in _COMPATIBLE:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def connector(*, allow_private: bool, resolver: AbstractResolver | None = None) -> TCPConnector:
    return TCPConnector(
        limit=0, resolver=resolver, socket_factory=None if allow_private else _public_socket
    )


def _public_socket(resolved: AddrInfoType) -> socket.socket:
    """Called for the very address that is connected to next, be it from a name or from a URL that
    holds it literally."""
    family, kind, protocol, _, place = resolved
    address = str(place[0])
    if not is_public(address):
        raise NotPublic(EACCES, f"{address} is not an address of the public internet")
    return socket.socket(family, kind, protocol)
