import json
import uuid
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from securesystemslib.signer import CryptoSigner
from support.tuf_repository import TufRepository, now
from support.world import Answer

from firmament.agent import identity
from firmament.agent.provision import PENDING, Provisioning, read_provisioning, read_provisioning_file
from firmament.durable import RealDisk
from firmament.errors import (
    ConflictError,
    CorruptStateError,
    FileError,
    FirmamentError,
    HttpStatusError,
    MalformedError,
    MalformedMetadataError,
    NotEnrolledError,
    SettingError,
    SignatureError,
    TooLargeError,
    TransferError,
    TrustError,
)
from firmament.payload import wrap
from firmament.protocol.v1.messages import decode_enrol_request
from firmament.sim.disk import SimDisk
from firmament.sim.faults import Cut, PowerCut, Survives
from firmament.trust.device_keys import IdentityKey
from firmament.trust.floors import DIRECTOR, IMAGE


class Server:
    """Signs what comes, once per token."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.requests = []
        self.used = set()
        self.answer = None
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])

    def certificate(self, public_key, device_id):
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)]))
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(1)
            .not_valid_before(now())
            .not_valid_after(now() + timedelta(days=9))
            .sign(self.key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
            .decode()
        )

    def sign(self, csr_pem):
        device_id = str(uuid.uuid4())
        request = x509.load_pem_x509_csr(csr_pem.encode())
        assert request.is_signature_valid
        return {
            "v": 1,
            "device_id": device_id,
            "certificate_chain_pem": self.certificate(request.public_key(), device_id),
        }

    def request(self, method, url, *, body=None, headers=None, deadline_s=None):
        assert (method, url) == ("POST", "https://server:4443/v1/enrol")
        request = decode_enrol_request(body)
        self.requests.append(request)
        if self.answer is not None:
            return self.answer
        if request.token in self.used:
            return Answer(401, b'{"type":"request/unauthenticated"}')
        self.used.add(request.token)
        return Answer(200, json.dumps(self.sign(request.csr_pem)).encode())


@pytest.fixture(scope="module")
def roots():
    return [TufRepository().roots[0].decode() for _ in range(3)]


@pytest.fixture
def value(roots):
    return {
        "v": 1,
        "server_url": "https://server:4443/",
        "ca_pem": "-----BEGIN CERTIFICATE-----\n",
        "token": "once",
        "product": "thermo",
        "hardware": "rpi4",
        "image_root": roots[0],
        "director_root": roots[1],
    }


@pytest.fixture
def file(value):
    return read_provisioning(json.dumps(value).encode())


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def device(tmp_path):
    return Provisioning(RealDisk(), tmp_path)


def load(device):
    return identity.load(device._disk, device._state)


# --- the file ------------------------------------------------------------------------------


def test_the_file_says_where_and_whom_to_trust(file, value):
    assert file.server_url == "https://server:4443"
    assert file.repository_url == "https://server:4443/v1/image"
    assert file.image_root.decode() == value["image_root"]


def test_the_repository_may_be_a_cdn(value):
    file = read_provisioning(json.dumps({**value, "repository_url": "https://cdn.example/fw/"}).encode())
    assert file.repository_url == "https://cdn.example/fw"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"v": 2}, MalformedError),
        ({"server_url": "ftp://x"}, MalformedError),
        ({"server_url": "https://user:secret@x"}, MalformedError),
        ({"product": "../x"}, MalformedError),
        ({"image_root": "{}"}, MalformedMetadataError),
        ({"image_root": "nonsense"}, MalformedError),
        ({"director_root": None}, MalformedError),
    ],
)
def test_a_file_that_is_wrong(value, change, error):
    with pytest.raises(error):
        read_provisioning(json.dumps({**value, **change}).encode())


def test_a_root_that_its_own_keys_did_not_sign(value):
    root = json.loads(value["image_root"])
    root["signed"]["version"] = 9
    with pytest.raises(TrustError):
        read_provisioning(json.dumps({**value, "image_root": json.dumps(root)}).encode())


def test_something_else_in_the_place_of_a_root(value):
    value["image_root"] = TufRepository().kept["timestamp.json"].decode()
    with pytest.raises(MalformedMetadataError):
        read_provisioning(json.dumps(value).encode())


def test_a_file_on_storage(tmp_path, value):
    path = tmp_path / "provisioning.json"
    path.write_text(json.dumps(value))
    assert read_provisioning_file(RealDisk(), path).product == "thermo"
    path.write_text("x")
    with pytest.raises(FileError):
        read_provisioning_file(RealDisk(), path)
    with pytest.raises(FileError):
        read_provisioning_file(RealDisk(), tmp_path / "absent")
    with pytest.raises(TooLargeError):
        read_provisioning(b" " * 3_000_000)


def key_of(csr_pem):
    return x509.load_pem_x509_csr(csr_pem.encode()).public_key().public_numbers()


# --- enrolment -----------------------------------------------------------------------------


def test_a_device_makes_its_keys_and_presents_its_token(device, file, server, tmp_path):
    device_id = device.enrol(file, transport=server)
    enrolment = load(device)
    assert enrolment.device_id == device_id
    assert enrolment.image_root == file.image_root
    (request,) = server.requests
    private = (tmp_path / "enrolment" / "hpke.key").read_bytes()
    assert wrap.public_of(private) == request.hpke_public_key
    enrolment.key.require_certificate(enrolment.certificate_path.read_text(), device_id=device_id)
    assert enrolment.relation.metadata_directory == tmp_path / "enrolment" / "metadata"
    assert enrolment.floors(RealDisk()).load().sequence_number == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "enrolment").iterdir() if path.is_file()}
    assert set(modes.values()) == {0o600}


def test_before_provisioning_there_is_nobody(device):
    with pytest.raises(NotEnrolledError):
        load(device)


def test_provisioning_twice_is_refused_and_force_keeps_the_old_until_done(device, file, server, value):
    first = device.enrol(file, transport=server)
    with pytest.raises(ConflictError):
        device.enrol(file, transport=server)
    again = read_provisioning(json.dumps({**value, "token": "second"}).encode())
    server.answer = Answer(503)
    with pytest.raises(HttpStatusError):
        device.enrol(again, transport=server, force=True)
    assert load(device).device_id == first
    server.answer = None
    second = device.enrol(again, transport=server, force=True)
    assert load(device).device_id == second != first
    assert sorted(path.name for path in device._state.iterdir()) == ["enrolment", "enrolment-2"]


def test_floors_survive_a_new_enrolment_with_the_same_roots(device, file, server, value, roots):
    device.enrol(file, transport=server)
    floors = load(device).floors(RealDisk())
    floors.raise_sequence(7)
    floors.store_roles(IMAGE, versions={"timestamp": 5}, keyids={"timestamp": ["a"]})
    floors.store_roles(DIRECTOR, versions={"timestamp": 6}, keyids={"timestamp": ["a"]}, time=now())
    before = floors.load()
    device.enrol(read_provisioning(json.dumps({**value, "token": "2"}).encode()), transport=server, force=True)
    after = load(device).floors(RealDisk()).load()
    assert (after.sequence_number, after.time, after.roles) == (7, before.time, before.roles)
    other = {**value, "token": "3", "image_root": roots[2]}
    device.enrol(read_provisioning(json.dumps(other).encode()), transport=server, force=True)
    after = load(device).floors(RealDisk()).load()
    assert after.sequence_number == 0
    assert set(after.roles) == {DIRECTOR}


def test_a_lost_answer_is_tried_again_with_the_same_keys(device, file, server):
    server.answer = Answer(502)
    for _ in range(2):
        with pytest.raises(TransferError):
            device.enrol(file, transport=server)
    server.answer = None
    device.enrol(file, transport=server)
    assert len({key_of(request.csr_pem) for request in server.requests}) == 1


def test_without_a_token_the_network_is_not_asked(device, value, server):
    del value["token"]
    with pytest.raises(SettingError):
        device.enrol(read_provisioning(json.dumps(value).encode()), transport=server)
    assert server.requests == []


@pytest.mark.parametrize("lie", ["other key", "other name", "no certificate"])
def test_a_certificate_that_is_not_ours(device, file, server, lie):
    device_id = str(uuid.uuid4())
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    chain = server.certificate(key, device_id) if lie == "other key" else "x"
    if lie == "other name":
        server.answer = Answer(503)
        with pytest.raises(TransferError):
            device.enrol(file, transport=server)
        request = x509.load_pem_x509_csr(server.requests[0].csr_pem.encode())
        chain = server.certificate(request.public_key(), str(uuid.uuid4()))
    server.answer = Answer(200, json.dumps({"v": 1, "device_id": device_id, "certificate_chain_pem": chain}).encode())
    with pytest.raises(SignatureError):
        device.enrol(file, transport=server)
    with pytest.raises(NotEnrolledError):
        load(device)


def test_an_answer_that_cannot_be_read(device, file, server):
    server.answer = Answer(200, b"hello")
    with pytest.raises(TransferError):
        device.enrol(file, transport=server)


# --- the factory path ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "pem"])
def test_the_factory_carries_request_and_certificate(device, file, server, form):
    request = device.begin(file)
    again = device.begin(file)
    assert key_of(again["csr_pem"]) == key_of(request["csr_pem"])
    assert again["hpke_public_key"] == request["hpke_public_key"]
    assert (request["product"], request["hardware"], len(request["hpke_public_key"])) == ("thermo", "rpi4", 2432)
    reply = server.sign(request["csr_pem"])
    data = json.dumps(reply) if form == "json" else reply["certificate_chain_pem"]
    assert device.finish(data.encode()) == reply["device_id"] == load(device).device_id


def test_finish_needs_a_beginning(device):
    with pytest.raises(NotEnrolledError):
        device.finish(b"{}")


@pytest.mark.parametrize("data", [b"", b"\xff", b"{}", b"-----BEGIN CERTIFICATE-----"])
def test_finish_with_something_else(device, file, data):
    device.begin(file)
    with pytest.raises(FirmamentError):
        device.finish(data)
    assert (device._state / PENDING).exists()


# --- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["enrolment.json", "identity.key", "image.root", "director.root"])
@pytest.mark.parametrize("data", [None, b"", b"{}"])
def test_damaged_files_are_an_error_and_never_a_new_device(device, file, server, name, data):
    device.enrol(file, transport=server)
    path = device._state / "enrolment" / name
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    if name.endswith(".root") and data is not None:
        assert load(device)  # the TUF client refuses it, see test_client
    else:
        with pytest.raises(CorruptStateError):
            load(device)


def test_missing_floors_are_tampering(device, file, server):
    device.enrol(file, transport=server)
    for path in (device._state / "enrolment" / "floors").iterdir():
        path.unlink()
    with pytest.raises(CorruptStateError):
        load(device).floors(RealDisk())


@pytest.mark.parametrize("survives", Survives)
def test_power_may_go_at_every_operation(file, value, server, tmp_path, survives):
    """The old identity or the new one is in force, and trying again always ends with the new one."""
    base = SimDisk()
    base.make_directory(tmp_path)
    for directory in tmp_path.parents:
        base.sync_directory(directory)
    Provisioning(base, tmp_path).enrol(file, transport=server)
    old = identity.load(base, tmp_path).device_id
    again = read_provisioning(json.dumps({**value, "token": "t"}).encode())
    probe = base.clone()
    before = probe.operations
    Provisioning(probe, tmp_path).enrol(again, transport=Server(), force=True)
    total = probe.operations - before
    for operation in range(total):
        disk, fresh = base.clone(), Server()
        disk.cut = Cut(disk.operations + operation, survives)
        with pytest.raises(PowerCut):
            Provisioning(disk, tmp_path).enrol(again, transport=fresh, force=True)
        disk.cut, disk.is_on = None, True
        found = identity.load(disk, tmp_path)
        found.floors(disk).load()
        if found.device_id == old:
            fresh.used.clear()
            Provisioning(disk, tmp_path).enrol(again, transport=fresh, force=True)
        assert identity.load(disk, tmp_path).device_id != old


def test_keys_that_are_no_identity_keys_are_refused():
    for data in (b"", b"x", CryptoSigner.generate_ed25519().private_bytes):
        with pytest.raises(FirmamentError):
            IdentityKey.from_pem(data)
