"""The little of MQTT 3.1.1 that listening for hints takes, without I/O: one subscription, QoS 0.

Libraries take whatever a broker announces, up to 256 MiB a packet; here a packet has a ceiling
(ADR-0036). Section numbers are those of the OASIS standard.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from firmament.errors import ForbiddenError, MalformedError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PACKET_LENGTH_BYTES: Final = 512
"""A topic and a hint fit in twice."""
MAX_LENGTH_DIGITS: Final = 4
SUBSCRIPTION: Final = 1
_CLEAN_SESSION: Final = 0x02
_PASSWORD: Final = 0x40
_USER_NAME: Final = 0x80
_MORE: Final = 0x80
_SEVEN_BITS: Final = 0x7F
_QOS: Final = 0x06
_REFUSED: Final = 0x80


class Kind(IntEnum):
    """Upper half of the first byte (2.2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    SUBSCRIBE = 8
    SUBACK = 9
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


_KINDS: Final = frozenset(map(int, Kind))


@dataclass(frozen=True, slots=True)
class Packet:
    """What a broker sent."""

    kind: Kind
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Published:
    """What a PUBLISH holds (3.3)."""

    topic: str
    payload: bytes


def _packet(kind: Kind, body: bytes, *, flags: int = 0) -> bytes:
    digits, left = bytearray(), len(body)
    while True:
        left, digit = left >> 7, left & _SEVEN_BITS
        digits.append(digit | (_MORE if left else 0))
        if not left:
            return bytes([kind << 4 | flags]) + digits + body


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2) + data


def connect(client_id: str, *, username: str, password: str, keep_alive_s: int) -> bytes:
    """Begin a session that the broker forgets at its end (3.1)."""
    flags = _CLEAN_SESSION | (_USER_NAME if username else 0) | (_PASSWORD if password else 0)
    body = _text("MQTT") + bytes([4, flags]) + keep_alive_s.to_bytes(2) + _text(client_id)
    body += b"".join(_text(text) for text in (username, password) if text)
    return _packet(Kind.CONNECT, body)


def subscribe(topic: str) -> bytes:
    """Ask for one topic at QoS 0 (3.8)."""
    return _packet(Kind.SUBSCRIBE, SUBSCRIPTION.to_bytes(2) + _text(topic) + b"\0", flags=2)


PINGREQ: Final = _packet(Kind.PINGREQ, b"")
DISCONNECT: Final = _packet(Kind.DISCONNECT, b"")


class Reader:
    """Cuts what arrives into packets; holds at most one that is not whole."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Yield each whole packet; raises MalformedError, and TooLargeError as soon as a length says so."""
        self._held += data
        while (found := self._cut()) is not None:
            yield found

    def _cut(self) -> Packet | None:
        length, begin = 0, 1
        while True:
            if len(self._held) <= begin:
                return None
            digit = self._held[begin]
            length |= (digit & _SEVEN_BITS) << 7 * (begin - 1)
            begin += 1
            if not digit & _MORE:
                break
            if begin > MAX_LENGTH_DIGITS:
                raise MalformedError("The broker's packet has no length")
        if length > MAX_PACKET_LENGTH_BYTES:
            raise TooLargeError(
                "The broker's packet is longer than a hint", length_bytes=length, limit_bytes=MAX_PACKET_LENGTH_BYTES
            )
        first = self._held[0]
        if first >> 4 not in _KINDS:
            raise MalformedError("The broker sent what is not for a listener", kind=first >> 4)
        if len(self._held) < begin + length:
            return None
        body = bytes(self._held[begin : begin + length])
        del self._held[: begin + length]
        return Packet(Kind(first >> 4), first & 0x0F, body)


def require_answer(packet: Packet, kind: Kind) -> None:
    """Check a CONNACK (3.2) or SUBACK (3.9); raises MalformedError, ForbiddenError when the broker says no."""
    if packet.kind is not kind or not packet.body:
        raise MalformedError("The broker answered something else", expected=kind.name, found=packet.kind.name)
    code = packet.body[-1]
    if (kind is Kind.CONNACK and code) or code >= _REFUSED:
        raise ForbiddenError("The broker refuses this device", answer=kind.name, code=code)


def published(packet: Packet) -> Published:
    """Read a PUBLISH; raises MalformedError."""
    end = 2 + int.from_bytes(packet.body[:2])
    if len(packet.body) < max(2, end) or packet.flags & _QOS:
        raise MalformedError("The broker's message is not well formed")
    try:
        topic = packet.body[2:end].decode()
    except UnicodeDecodeError as error:
        raise MalformedError("The broker's topic is no text") from error
    return Published(topic, packet.body[end:])
