"""The demonstration's products: real input, the same bytes for the same version."""

import hashlib
import http.client
import json
import socket
import subprocess
import sys
import time

import pytest

from firmament.errors import DependencyMissingError, FileError
from firmament.sim.demo import products
from firmament.sim.demo.products import version


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_image_is_a_whole_file_system_and_can_be_built_again(tmp_path):
    one = products.build_gateway(tmp_path / "1/gateway.img", version("1.1"), workspace=tmp_path)
    time.sleep(1.1)  # times in the file system have a resolution of a second
    two = products.build_gateway(tmp_path / "2/gateway.img", version("1.1"), workspace=tmp_path)
    assert digest(one) == digest(two)
    assert one.stat().st_size == products.IMAGE_LENGTH_BYTES
    products.run_tool(["e2fsck", "-f", "-n", one])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_only_the_bad_image_lacks_the_modem_firmware(tmp_path):
    for found in products.VERSIONS:
        image = products.build_gateway(tmp_path / f"{found.name}.img", found, workspace=tmp_path)
        assert products.read_from_image(image, "/etc/gateway-version") == f"{found.name}\n".encode()
        assert (products.read_from_image(image, products.MODEM_FIRMWARE) is not None) == found.is_healthy


def test_a_missing_tool_says_what_to_install(monkeypatch):
    monkeypatch.setattr(products, "SYSTEM_TOOLS", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DependencyMissingError, match="e2fsprogs"):
        products.tool("mkfs.ext4")


def test_a_tool_that_fails_says_why(tmp_path):
    with pytest.raises(FileError, match=r"nothing\.img"):
        products.run_tool(["e2fsck", "-n", tmp_path / "nothing.img"])


@pytest.mark.parametrize(("name", "status"), [("1.0", 200), ("1.1", 200), ("1.2", 503)])
def test_the_app_tells_its_health_and_stops_when_asked(tmp_path, name, status):
    app = products.build_thermo(tmp_path / "app", version(name))
    port = free_port()
    with subprocess.Popen([sys.executable, "main.py", "--port", str(port)], cwd=app, stderr=subprocess.PIPE) as running:
        running.stderr.readline()  # it says when it answers
        found, body = ask(port)
        assert found == status
        assert body["version"] == name
        assert ("temperature_c" in body) == (name == "1.1")
        assert ("reason" in body) == (status == 503)
        running.terminate()
        assert running.wait(5) == 0


def ask(port: int):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
