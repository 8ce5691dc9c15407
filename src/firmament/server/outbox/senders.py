"""Real senders: HTTPS with HMAC, SMTP, MQTT. Blocking ones run in a thread; each has a deadline and ceilings."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import smtplib
import ssl
from email.message import EmailMessage
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import urllib3

from firmament.errors import DependencyMissingError, FirmamentError, SettingError
from firmament.server.outbox.guard import judge
from firmament.server.outbox.model import Answer
from firmament.server.outbox.store import open_secret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from firmament.core.clock import Clock
    from firmament.server.outbox.model import Outlet, Parcel
    from firmament.server.people.vault import Vault

DEADLINE_S: Final = 10.0
MAX_ANSWER_LENGTH_BYTES: Final = 1024
GOOD: Final = range(200, 300)
SIGNATURE_HEADER: Final = "Firmament-Signature"
MAX_SUBJECT_LENGTH: Final = 160


def signature(secret: str, unix_s: int, body: bytes) -> str:
    """Return ``t=TIME,v1=HEX``: HMAC-SHA256 over time, a dot and the body."""
    mac = hmac.new(secret.encode(), f"{unix_s}.".encode() + body, hashlib.sha256)
    return f"t={unix_s},v1={mac.hexdigest()}"


class WebhookSender:
    """POST over HTTPS, signed, to the address that was judged; no redirect, no compression."""

    def __init__(self, clock: Clock, vault: Vault, *, networks: Sequence[str], ca: Path | None = None) -> None:
        self._clock = clock
        self._vault = vault
        self._networks = tuple(networks)
        self._context = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2

    async def send(self, outlet: Outlet, parcel: Parcel) -> Answer:
        """See the port."""
        return await asyncio.to_thread(self._post, outlet, parcel)

    def _post(self, outlet: Outlet, parcel: Parcel) -> Answer:
        started_s = self._clock.monotonic_s()
        body = json.dumps(parcel.value, separators=(",", ":"), ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "firmament",
            "Firmament-Kind": parcel.kind,
            "Firmament-Number": str(parcel.number),
        }
        try:
            secret = open_secret(self._vault, outlet)
            headers[SIGNATURE_HEADER] = signature(secret, int(self._clock.now().timestamp()), body)
            place = judge(outlet.target, allowed=self._networks)
            headers["Host"] = place.host if place.port == 443 else f"{place.host}:{place.port}"  # noqa: PLR2004 - HTTPS
            pool = urllib3.HTTPSConnectionPool(
                place.address,
                place.port,
                ssl_context=self._context,
                server_hostname=place.host,
                assert_hostname=place.host,
                timeout=DEADLINE_S,
                retries=False,
            )
            with pool:
                response = pool.request(
                    "POST", place.path, body=body, headers=headers, redirect=False, preload_content=False
                )
                response.read(MAX_ANSWER_LENGTH_BYTES)
                response.close()
            ok, text = response.status in GOOD, f"HTTP {response.status}"
        except FirmamentError as error:
            ok, text = False, f"{error.code}: {error.problem}"
        except (urllib3.exceptions.HTTPError, OSError) as error:
            ok, text = False, f"{type(error).__name__}"
        return Answer(ok, text, round(1000 * (self._clock.monotonic_s() - started_s)))


class MailSender:
    """SMTP through the server that the settings name: ``smtp://``, ``smtps://`` or ``smtp+starttls://``."""

    def __init__(self, clock: Clock, *, url: str, sender: str, ca: Path | None = None) -> None:
        self._clock = clock
        self._url = url
        self._from = sender
        self._ca = ca

    async def send(self, outlet: Outlet, parcel: Parcel) -> Answer:
        """See the port."""
        return await asyncio.to_thread(self._mail, outlet, parcel)

    def _mail(self, outlet: Outlet, parcel: Parcel) -> Answer:
        started_s = self._clock.monotonic_s()
        mail = EmailMessage()
        mail["From"] = self._from
        mail["To"] = outlet.target
        mail["Subject"] = " ".join(parcel.title.split())[:MAX_SUBJECT_LENGTH]
        mail["Message-ID"] = f"<{outlet.tenant_id}.{parcel.number}.{outlet.row_id}@firmament>"
        mail.set_content(parcel.body)
        try:
            with self._connect() as server:
                server.send_message(mail)
            ok, text = True, "accepted"
        except FirmamentError as error:
            ok, text = False, f"{error.code}: {error.problem}"
        except (smtplib.SMTPException, OSError) as error:
            ok, text = False, f"{type(error).__name__}"
        return Answer(ok, text, round(1000 * (self._clock.monotonic_s() - started_s)))

    def _connect(self) -> smtplib.SMTP:
        if not self._url:
            raise SettingError("No mail server is set", setting="smtp_url")
        parts = urlsplit(self._url)
        host, context = (
            parts.hostname or "localhost",
            ssl.create_default_context(cafile=str(self._ca) if self._ca is not None else None),
        )
        server: smtplib.SMTP
        if parts.scheme == "smtps":
            server = smtplib.SMTP_SSL(host, parts.port or 465, timeout=DEADLINE_S, context=context)
        else:
            server = smtplib.SMTP(host, parts.port or 25, timeout=DEADLINE_S)
        try:
            if parts.scheme == "smtp+starttls":
                server.starttls(context=context)
            if parts.username is not None:
                server.login(unquote(parts.username), unquote(parts.password or ""))
        except BaseException:
            server.close()
            raise
        return server


class BrokerSender:
    """MQTT to the broker that the settings name: ``mqtt://`` or ``mqtts://``; QoS 1."""

    def __init__(self, clock: Clock, *, url: str, ca: Path | None = None) -> None:
        self._clock = clock
        self._url = url
        self._ca = ca

    async def send(self, outlet: Outlet, parcel: Parcel) -> Answer:
        """See the port: the parcel as JSON on the outlet's topic."""
        body = json.dumps(parcel.value, separators=(",", ":"), ensure_ascii=False).encode()
        return await self.publish([(outlet.target, body)], retain=False)

    async def publish(self, messages: Sequence[tuple[str, bytes]], *, retain: bool) -> Answer:
        """Publish messages on one connection."""
        started_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._publish(messages, retain=retain)
            ok, text = True, f"published {len(messages)}"
        except TimeoutError:
            ok, text = False, "the broker did not answer in time"
        except FirmamentError as error:
            ok, text = False, f"{error.code}: {error.problem}"
        except (OSError, ValueError) as error:
            ok, text = False, type(error).__name__
        return Answer(ok, text, round(1000 * (self._clock.monotonic_s() - started_s)))

    async def _publish(self, messages: Sequence[tuple[str, bytes]], *, retain: bool) -> None:
        try:
            import aiomqtt
        except ImportError as error:
            raise DependencyMissingError("MQTT needs the extra mqtt", install="firmament[mqtt]") from error
        if not self._url:
            raise SettingError("No MQTT broker is set", setting="mqtt_url")
        parts = urlsplit(self._url)
        is_secure = parts.scheme == "mqtts"
        context = ssl.create_default_context(cafile=str(self._ca) if self._ca is not None else None)
        try:
            async with aiomqtt.Client(
                parts.hostname or "localhost",
                parts.port or (8883 if is_secure else 1883),
                username=unquote(parts.username) if parts.username else None,
                password=unquote(parts.password) if parts.password else None,
                tls_context=context if is_secure else None,
                timeout=DEADLINE_S,
            ) as client:
                for topic, body in messages:
                    await client.publish(topic, body, qos=1, retain=retain)
        except aiomqtt.MqttError as error:
            raise OSError(str(error)) from error
