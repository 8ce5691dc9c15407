"""A wave opens and a device that would have asked an hour later asks now: real broker, server and agent."""

import re
import signal
import socket
import subprocess
import time

import pytest
from support.agent_device import Device, until
from support.databases import fresh_database
from support.receivers import Mosquitto
from support.server_world import World

SECRET = "a-password-of-the-tests"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", directory / "key.pem", "-out", directory / "ca.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return directory / "ca.pem", directory / "key.pem"


@pytest.fixture(scope="module")
def broker(certificate, tmp_path_factory):
    found = Mosquitto(tmp_path_factory.mktemp("broker"), certificate=certificate)
    yield found
    found.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind, broker, certificate):
    env = {
        "FIRMAMENT_SERVER_MQTT_URL": f"mqtts://localhost:{broker.port}",
        "FIRMAMENT_SERVER_OUTBOX_CA": str(certificate[0]),
        "FIRMAMENT_SERVER_MQTT_SPREAD_S": "0",
    }
    made = World(tmp_path_factory.mktemp("world"), env=env, database=fresh_database(database_kind)).begin()
    made.publish_release("thermo", "2.0", 2, b"two")
    yield made
    made.close()


@pytest.fixture
def make_device(world, certificate, tmp_path):
    """It asks at its start, and would again an hour later."""

    def make(port):
        password = tmp_path / "password"
        password.write_text(SECRET)
        password.chmod(0o600)
        section = (
            f'[wake]\nurl = "mqtts://localhost:{port}"\nca = "{certificate[0]}"\n'
            f'username = "device"\npassword_file = "{password}"\n'
        )
        return Device(tmp_path / "device", world, policy="poll_interval_s = 3600", extra=section).provision()

    return make


def polls(world):
    return len(re.findall(r'"path": ?"/v1/poll"', world.server.log.read_text()))


def wake_finding(device):
    return next(item for item in device.run("doctor")["findings"] if item["check"] == "wake")


def test_70_a_broker_that_never_answers_or_is_away_delays_nothing(world, make_device):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        device = make_device(silent.getsockname()[1])
        before = polls(world)
        with device.daemon() as process:
            until(lambda: polls(world) == before + 1)
            process.send_signal(signal.SIGHUP)
            until(lambda: polls(world) == before + 2)
            began_s = time.monotonic()
            process.terminate()
            assert process.wait(10) == 0
            assert time.monotonic() - began_s < 5
    found = wake_finding(device)
    assert (found["verdict"], "cannot be reached" in found["seen"]) == ("warning", True)
    assert SECRET not in device.log


def test_a_wave_wakes_a_device_that_would_have_asked_an_hour_later(world, broker, make_device):
    device = make_device(broker.port)
    assert wake_finding(device)["verdict"] == "good"
    before = polls(world)
    with device.daemon() as process:
        until(lambda: polls(world) == before + 1)
        body = {"name": "two", "release": "thermo/2.0", "selector": "product=thermo", "waves": [{"percent": 100}]}
        made = world.admin.ask("POST", "/api/v1/rollouts", body)
        assert made.status == 201, made.body
        assert process.wait(30) == 10  # it asked, fetched, and restarts into the new image
    with device.daemon():
        until(lambda: device.run("status")["running"])
    assert world.attempt(device)["status"] == "confirmed"
    assert "wake.hinted" in device.log
    assert SECRET not in device.log + world.server.log.read_text()
