"""Where a webhook may go: not into this machine and not into the network behind it.

Whoever may add a webhook could otherwise have the server ask what only the server can reach:
loopback services, a cloud's metadata address, hosts behind the firewall. The name is resolved
once, every address is judged, and the connection goes to the address that was judged: a name
that answers differently the second time gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from firmament.errors import ForbiddenError, MalformedError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HTTPS_PORT: Final = 443
MAX_URL_LENGTH: Final = 2048


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL taken apart, and the address to connect to."""

    host: str
    port: int
    path: str
    address: str


def read_url(url: str) -> tuple[str, int, str]:
    """Return host, port and path of an ``https://`` URL; raises MalformedError for anything else."""
    if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable():
        raise MalformedError("The webhook's address is too long or has characters that are not allowed")
    try:
        parts = urlsplit(url)
        port = parts.port or HTTPS_PORT
    except ValueError as error:
        raise MalformedError("The webhook's address cannot be read", reason=error) from error
    if parts.scheme != "https" or not parts.hostname or parts.username is not None or parts.fragment:
        raise MalformedError("A webhook's address is https://host[:port]/path", url=url[:120])
    return parts.hostname, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def is_public(address: str) -> bool:
    """Whether an address is one that everybody can reach: no loopback, private, link-local, multicast."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif found.sixtofour is not None or found.teredo is not None:
            return False  # an IPv4 address in disguise
    return found.is_global and not found.is_multicast


def resolve(host: str, port: int) -> list[str]:
    """Return every address of a name; raises UnreachableError."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise UnreachableError("The webhook's host has no address", host=host, reason=error) from error


def judge(url: str, *, allowed: Sequence[str], look_up: Callable[[str, int], list[str]] = resolve) -> Destination:
    """Return where to connect to; raises ForbiddenError unless every address of the host may be asked.

    `allowed` are networks (``10.1.0.0/16``) that the administrator opened.
    """
    host, port, path = read_url(url)
    addresses = look_up(host, port)
    networks = [ipaddress.ip_network(text) for text in allowed]
    for address in addresses:
        if not is_public(address) and not any(ipaddress.ip_address(address) in network for network in networks):
            raise ForbiddenError(
                "A webhook may not go to this address; see the setting outbox_networks", host=host, address=address
            )
    if not addresses:
        raise UnreachableError("The webhook's host has no address", host=host)
    return Destination(host, port, path, addresses[0])
