"""Mail and MQTT over TLS, to real servers: Debian's aiosmtpd and Mosquitto; a certificate that does not fit is refused."""

import asyncio
import subprocess

import pytest
from support.receivers import MailServer, Mosquitto, Receiver, wait_for

from firmament.core.clock import SystemClock
from firmament.server.outbox.model import Outlet, OutletKind, Parcel, Takes
from firmament.server.outbox.senders import BrokerSender, MailSender

CLOCK = SystemClock()
PARCEL = Parcel(7, "notification", 0, "HALTED at 2 %", "Look at it.", {"v": 1, "title": "HALTED"})


def outlet(kind, target):
    return Outlet(1, 1, "out", kind, Takes.NOTIFICATIONS, target, "", (), False, 0, 0, 0, None, 0)


MAIL, TOPIC = outlet(OutletKind.SMTP, "ops@example.org"), outlet(OutletKind.MQTT, "ops/firmament")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """One for localhost, one for somebody else: (certificate, key) each."""
    directory = tmp_path_factory.mktemp("tls")
    for name in ("localhost", "elsewhere.example"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
             "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
    return {name: (directory / f"{name}.pem", directory / f"{name}.key") for name in ("localhost", "elsewhere.example")}


def mail(server, scheme, ca):
    sender = MailSender(CLOCK, url=f"{scheme}://localhost:{server.port}", sender="firmament@example.org", ca=ca)
    return asyncio.run(sender.send(MAIL, PARCEL))


@pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])
def test_mail_travels_over_tls_to_a_server_whose_certificate_fits(tmp_path, certificates, scheme):
    good, other = certificates["localhost"], certificates["elsewhere.example"]
    server = MailServer(tmp_path, good, is_smtps=scheme == "smtps")
    try:
        assert mail(server, scheme, other[0]).text == "SSLCertVerificationError"
        assert server.got() == []
        assert mail(server, scheme, good[0]).ok
        (got,) = wait_for(server.got)
        assert ("Subject: HALTED at 2 %" in got, "Look at it." in got) == (True, True)
    finally:
        server.close()


def test_mail_is_not_given_to_a_server_with_another_name(tmp_path, certificates):
    server = MailServer(tmp_path, certificates["elsewhere.example"], is_smtps=True)
    try:
        assert mail(server, "smtps", certificates["elsewhere.example"][0]).text == "SSLCertVerificationError"
    finally:
        server.close()


def test_mail_without_starttls_is_not_sent_in_the_clear(tmp_path, certificates):
    """A server, or somebody between, that does not offer STARTTLS gets nothing."""
    server = Receiver(tmp_path, "smtp")
    try:
        assert mail(server, "smtp+starttls", certificates["localhost"][0]).text == "SMTPNotSupportedError"
        assert server.got() == []
    finally:
        server.close()


# paho-mqtt leaves a socket whose handshake failed to the collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_mqtt_travels_over_tls_to_a_broker_whose_certificate_fits(tmp_path, certificates):
    good, other = certificates["localhost"], certificates["elsewhere.example"]
    broker = Mosquitto(tmp_path, certificate=good)
    try:
        url = f"mqtts://localhost:{broker.port}"
        assert not asyncio.run(BrokerSender(CLOCK, url=url, ca=other[0]).send(TOPIC, PARCEL)).ok
        assert not asyncio.run(BrokerSender(CLOCK, url=url.replace("mqtts", "mqtt")).send(TOPIC, PARCEL)).ok
        assert asyncio.run(BrokerSender(CLOCK, url=url, ca=good[0]).send(TOPIC, PARCEL)).ok
        (got,) = wait_for(broker.got)
        assert (got["topic"], got["value"]["title"]) == ("ops/firmament", "HALTED")
    finally:
        broker.close()
