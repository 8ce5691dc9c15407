"""A connection to a broker: TCP, TLS with the owner's CA, one subscription; every wait has an end."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Final, Self

from firmament.agent import wake_packets
from firmament.agent.tls import NO_CHECK_TIME
from firmament.agent.wake_packets import Kind, Packet, Reader
from firmament.durable import read_file
from firmament.errors import MalformedError, SettingError, TlsError, UnreachableError
from firmament.protocol.v1.wake import bucket_of, wake_topic
from firmament.trust.key_files import read_private_file

if TYPE_CHECKING:
    from firmament.agent.wake_settings import WakeSettings
    from firmament.core.ids import DeviceId
    from firmament.durable import Disk

KEEP_ALIVE_S: Final = 240
"""Said to the broker, which ends a session that was silent for one and a half times as long."""
ANSWER_S: Final = 15
"""Longest silence while a session begins."""
RECEIVE_BYTES: Final = 512
MAX_CA_LENGTH_BYTES: Final = 256 * 1024
MAX_BEFORE_ANSWER: Final = 8
"""Packets that may come before the answer to a question: retained messages overtake it (3.8.4)."""


class Session:
    """A subscription of one device, from `open` to `close`."""

    def __init__(self, settings: WakeSettings, device_id: DeviceId, disk: Disk) -> None:
        self.topic = wake_topic(settings.tenant, bucket_of(device_id))
        self._settings = settings
        self._device_id = device_id
        self._disk = disk
        self._reader = Reader()
        self._socket: socket.socket | None = None
        self._early: list[Packet] = []

    def open(self) -> Self:
        """Connect and subscribe.

        Raises TlsError, UnreachableError, ForbiddenError when the broker says no, MalformedError when it
        speaks something else, FileError or KeyFileError for the files that the settings name.
        """
        settings = self._settings
        password = read_private_file(settings.password_file).decode().strip() if settings.password_file else ""
        hello = wake_packets.connect(
            self._device_id, username=settings.username, password=password, keep_alive_s=KEEP_ALIVE_S
        )
        self._connect()
        try:
            for said, kind in ((hello, Kind.CONNACK), (wake_packets.subscribe(self.topic), Kind.SUBACK)):
                self.send(said)
                self._require(kind)
        except BaseException:
            self.close()
            raise
        return self

    def _connect(self) -> None:
        settings = self._settings
        context = (
            None
            if settings.ca is None
            else self._context(read_file(self._disk, settings.ca, limit_bytes=MAX_CA_LENGTH_BYTES))
        )
        try:
            plain = socket.create_connection((settings.host, settings.port), ANSWER_S)
        except OSError as error:
            raise UnreachableError("The broker cannot be reached", host=settings.host, port=settings.port) from error
        try:
            self._socket = plain if context is None else context.wrap_socket(plain, server_hostname=settings.host)
        except (OSError, ValueError) as error:
            plain.close()
            raise TlsError("The broker cannot be trusted", host=settings.host, reason=error) from error

    def _context(self, ca: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)  # a device's clock may be wrong: tls.py
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise SettingError("The broker's CA is not a PEM certificate", setting="wake.ca") from error
        return context

    def _require(self, kind: Kind) -> None:
        for _ in range(MAX_BEFORE_ANSWER):
            packets = self._read(ANSWER_S)
            if not packets:
                raise UnreachableError("The broker does not answer", waited_s=ANSWER_S)
            for number, packet in enumerate(packets):
                if packet.kind is not Kind.PUBLISH:
                    wake_packets.require_answer(packet, kind)
                    self._early += packets[number + 1 :]
                    return
                self._early.append(packet)
        raise MalformedError("The broker sends other things than its answer", expected=kind.name)

    def receive(self, timeout_s: float) -> list[Packet]:
        """Return what came, nothing after `timeout_s`; raises UnreachableError at the end of the connection."""
        early, self._early = self._early, []
        return early or self._read(timeout_s)

    def _read(self, timeout_s: float) -> list[Packet]:
        assert self._socket is not None
        try:
            self._socket.settimeout(timeout_s)
            data = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError:
            return []
        except OSError as error:
            raise UnreachableError("The broker broke off", reason=error) from error
        if not data:
            raise UnreachableError("The broker ended the connection")
        return list(self._reader.feed(data))

    def send(self, data: bytes) -> None:
        """Send; raises UnreachableError."""
        assert self._socket is not None
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.sendall(data)
        except OSError as error:
            raise UnreachableError("The broker broke off", reason=error) from error

    def close(self) -> None:
        """End at once; another thread that waits for the broker wakes up."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
