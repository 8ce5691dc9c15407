"""What the server must refuse, each with its code, and with nothing changed (trust.md §10)."""

import base64
import contextlib
import json
import os
import socket
import ssl
import time
import warnings
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from support.databases import fresh_database
from support.server_world import PASSWORD, Client, World, sha256, submission, target_of

from firmament.core.digest import Digest
from firmament.server.keep import tables
from firmament.server.tokens import hash_token
from firmament.trust.device_keys import IdentityKey


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    env = {"FIRMAMENT_SERVER_LOGIN_BURST": "100", "FIRMAMENT_SERVER_HEADER_DEADLINE_S": "1"}
    made = World(tmp_path_factory.mktemp("world"), env=env, database=fresh_database(database_kind)).begin()
    made.publish_release("thermo", "1.0", 10, b"one")
    made.publish_release("pump", "1.0", 10, b"pump one")
    yield made
    made.close()


@pytest.fixture
def unchanged(world):
    """The repository after the test is the one before it, and the author's numbers too."""
    before = world.admin.ask("GET", "/api/v1/image/state").json
    targets = {name: dict(found) for name, found in world.author.targets.items()}
    versions = dict(world.author.versions)
    yield
    assert world.admin.ask("GET", "/api/v1/image/state").json == before
    world.author.targets, world.author.versions = targets, versions
    world.author.blobs.clear()


def refused(world, value, client=None):
    answer = world.publish(value, client)
    assert answer.status >= 400, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json) == {"type", "title", "status", "detail", "retry", "facts", "request_id"}
    return answer.code


# --- publish (cases 10 to 28, 60, 61) --------------------------------------------------------


def test_60_an_unsigned_release_is_refused(world, unchanged):
    world.author.release("thermo", "2.0", 20, b"two")
    world.upload()
    assert refused(world, submission(world.author.product("thermo", signers=[]))) == "trust/threshold-not-met"


def test_60_a_release_signed_by_too_few_is_refused(world, unchanged):
    world.author.release("thermo", "2.0", 20, b"two")
    world.upload()
    one = world.author.product_keys["thermo"][:1]
    assert refused(world, submission(world.author.product("thermo", signers=one))) == "trust/threshold-not-met"


def test_60_a_release_signed_by_strangers_is_refused(world, unchanged):
    strangers = [CryptoSigner.generate_ed25519() for _ in range(2)]
    assert refused(world, submission(world.author.product("thermo", signers=strangers))) == "trust/threshold-not-met"


def test_60_an_expired_release_is_refused(world, unchanged):
    expired = world.author.product("thermo", expires_at=world.author.now - timedelta(days=1))
    assert refused(world, submission(expired)) == "trust/expired"


def test_20_another_products_keys_sign_nothing_here(world, unchanged):
    keys = world.author.product_keys["pump"]
    assert refused(world, submission(world.author.product("thermo", signers=keys))) == "trust/threshold-not-met"


def test_61_a_release_token_of_one_product_cannot_publish_another(world, unchanged):
    thermo = world.token("releaser", "thermo")
    world.author.release("pump", "3.0", 30, b"three")
    world.upload()
    assert refused(world, submission(world.author.product("pump")), thermo) == "request/forbidden"


def test_61_a_product_token_publishes_its_own_product(world):
    thermo = world.token("releaser", "thermo")
    world.author.release("thermo", "1.5", 15, b"one and a half")
    world.upload(thermo)
    assert world.publish(submission(world.author.product("thermo")), thermo).status == 200
    listed = thermo.ask("GET", "/api/v1/releases").json["releases"]
    assert {release["product"] for release in listed} == {"thermo"}
    assert thermo.ask("GET", "/api/v1/releases/pump/1.0").code == "request/forbidden"


def test_61_a_product_token_cannot_change_delegations_or_roots(world, unchanged):
    thermo = world.token("releaser", "thermo")
    assert refused(world, submission(world.author.top_targets()), thermo) == "request/forbidden"
    root = {"2.root.json": world.author.root("image", version=2)}
    assert refused(world, submission(root), thermo) == "request/forbidden"


@pytest.mark.parametrize("role", ["viewer", "operator", "approver"])
def test_roles_that_may_not_publish_or_upload_cannot(world, unchanged, role):
    client = world.token(role)
    assert refused(world, submission(world.author.product("thermo")), client) == "request/forbidden"
    assert client.ask("PUT", f"/api/v1/blobs/{sha256(b'x')}", b"x").code == "request/forbidden"


def test_targets_rollback_is_refused(world, unchanged):
    assert refused(world, submission(world.author.product("thermo", version=1))) == "trust/rollback"


def test_a_version_may_not_use_up_the_numbers(world, unchanged):
    assert refused(world, submission(world.author.product("thermo", version=2**31))) == "trust/malformed-metadata"


def test_a_lower_sequence_number_is_refused(world, unchanged):
    world.author.release("thermo", "0.9", 9, b"old")
    world.upload()
    assert refused(world, submission(world.author.product("thermo"))) == "trust/rollback"


def test_a_published_release_never_changes(world, unchanged):
    world.author.targets["thermo"].pop("thermo/1.0/firmware.img")
    world.author.release("thermo", "1.0", 99, b"other bytes, same name")
    world.upload()
    assert refused(world, submission(world.author.product("thermo"))) == "request/conflict"


def test_a_release_without_its_bytes_is_refused(world, unchanged):
    world.author.release("thermo", "2.0", 20, b"never uploaded")
    assert refused(world, submission(world.author.product("thermo"))) == "trust/digest-mismatch"


def test_a_release_whose_bytes_changed_on_disk_is_refused(world, unchanged):
    data = b"will be changed"
    world.author.release("thermo", "2.0", 20, data)
    world.upload()
    blob = world.server.directory / "blobs" / sha256(data)[:2] / sha256(data)
    blob.write_bytes(b"was changed now")
    assert refused(world, submission(world.author.product("thermo"))) == "trust/digest-mismatch"
    # Uploading again mends it.
    assert world.admin.ask("PUT", f"/api/v1/blobs/{sha256(data)}", data).status == 200
    assert blob.read_bytes() == data


def test_11_12_root_skips_and_half_signed_roots_are_refused(world, unchanged):
    author = world.author

    def root(**changes):
        return submission({f"{changes['version']}.root.json": author.root("image", **changes)})

    assert refused(world, root(version=3)) == "trust/malformed-metadata"
    assert refused(world, root(version=2, signers=author.root_keys[:1])) == "trust/threshold-not-met"
    new = [CryptoSigner.generate_ed25519() for _ in range(3)]
    only_new = root(version=2, root_keys=new, signers=new[:2])
    only_old = root(version=2, root_keys=new, signers=author.root_keys[:2])
    assert refused(world, only_new) == "trust/threshold-not-met"
    assert refused(world, only_old) == "trust/threshold-not-met"
    expired = root(version=2, expires_at=author.now - timedelta(seconds=1))
    assert refused(world, expired) == "trust/expired"


def test_a_root_that_names_other_online_keys_is_refused(world, unchanged):
    online = json.loads(json.dumps(world.author.online))
    stranger = CryptoSigner.generate_ed25519().public_key
    online["image"]["timestamp"] = {"keyid": stranger.keyid, "key": stranger.to_dict()}
    mine, world.author.online = world.author.online, online
    try:
        assert refused(world, submission({"2.root.json": world.author.root("image", version=2)})) == "request/conflict"
    finally:
        world.author.online = mine


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("timestamp.json", "request/malformed"),
        ("9.snapshot.json", "request/malformed"),
        ("9.timestamp.json", "request/malformed"),
        ("../9.targets.json", "request/malformed"),
        ("0.targets.json", "request/malformed"),
        ("9.stranger.json", "trust/malformed-metadata"),
        ("99.targets.json", "trust/malformed-metadata"),
        ("9..json", "request/malformed"),
    ],
)
def test_files_that_cannot_be_published(world, unchanged, name, code):
    assert refused(world, {"metadata": {name: "{}"}}) == code


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"metadata": {}, "metadata": {}}', b'{"metadata": {"1.root.json": 7}}', b"\xff\xfe"])  # fmt: skip
def test_bodies_that_are_not_a_publish(world, unchanged, body):
    assert refused(world, body) == "request/malformed"


def test_a_refused_publish_is_an_event_with_its_code(world):
    before = len(world.server.events("publish.refused"))
    thermo = world.token("releaser", "thermo")
    said = [
        refused(world, submission(world.author.product("thermo", signers=[]))),
        refused(world, submission(world.author.product("thermo", expires_at=world.author.now - timedelta(days=1)))),
        refused(world, submission(world.author.top_targets()), thermo),
        refused(world, submission(world.author.product("thermo", version=1))),
    ]
    codes = [event["facts"]["code"] for event in world.server.events("publish.refused")[before:]]
    assert codes == said == ["trust/threshold-not-met", "trust/expired", "request/forbidden", "trust/rollback"]


def test_publishing_the_same_again_changes_nothing(world, unchanged):
    value = submission({"1.root.json": b""})
    current = world.server.directory / "repository" / "current" / "image"
    value = submission({path.name: path.read_bytes() for path in current.glob("*.thermo.json")})
    newest = max(value["metadata"], key=lambda name: int(name.split(".")[0]))
    assert world.publish({"metadata": {newest: value["metadata"][newest]}}).status == 200


# --- enrolment -------------------------------------------------------------------------------


def test_a_used_token_is_refused(world):
    token = world.enrolment_token()
    assert world.new_device().enrol(world.server, token).status == 200
    answer = world.new_device().enrol(world.server, token)
    assert (answer.status, answer.code) == (401, "request/enrolment-token")
    assert "used before" in answer.json["title"]


def test_a_lost_answer_can_be_asked_for_again(world):
    token = world.enrolment_token()
    device = world.new_device()
    first = device.enrol(world.server, token).json["device_id"]
    assert device.enrol(world.server, token).json["device_id"] == first
    assert device.poll().status == 200


@pytest.mark.parametrize(
    ("token", "device"),
    [
        ({"product": "pump"}, {}),
        ({"hardware": "rpi5"}, {}),
        ({"expires_in_s": 1}, {}),
    ],
)
def test_a_token_for_something_else_or_expired_is_refused(world, token, device):
    made = world.enrolment_token(**token)
    if "expires_in_s" in token:
        time.sleep(1.1)
    assert world.new_device(**device).enrol(world.server, made).code == "request/enrolment-token"


def test_unknown_tokens_are_refused_and_recorded(world):
    assert world.new_device().enrol(world.server, "fme_nothing").code == "request/enrolment-token"
    assert world.server.events("enrolment.refused")[-1]["facts"]["code"] == "request/enrolment-token"


def test_49_a_cloned_identity_is_refused(world):
    original = world.device()
    clone = world.new_device()
    clone.key, clone.hpke_public_key = original.key, original.hpke_public_key
    assert clone.enrol(world.server, world.enrolment_token()).code == "request/conflict"
    clone.hpke_public_key = os.urandom(len(clone.hpke_public_key))
    assert clone.enrol(world.server, world.enrolment_token()).code == "request/conflict"


def test_a_request_that_does_not_prove_the_key_is_refused(world):
    device = world.new_device()
    csr = device.key.request_pem(product="thermo", hardware="rpi4")
    body = base64.b64decode("".join(csr.splitlines()[1:-1]))
    forged = body[:-5] + bytes([body[-5] ^ 1]) + body[-4:]
    pem = (
        "-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(forged).decode()
        + "-----END CERTIFICATE REQUEST-----\n"
    )
    with Client(world.server) as client:
        for text in (pem, "not a request", ""):
            answer = client.ask("POST", "/v1/enrol", device.request(token=world.enrolment_token(), csr_pem=text))
            assert answer.code in {"trust/signature", "request/malformed"}


def test_the_factory_path_enrols_by_request(world):
    device = world.new_device()
    answer = world.token("operator").ask("POST", "/api/v1/enrolments/csr", device.request())
    assert answer.status == 201
    device.take(world.server, answer.json)
    assert device.poll().status == 200
    assert world.token("viewer").ask("POST", "/api/v1/enrolments/csr", device.request()).code == "request/forbidden"


def test_40_a_certificate_of_another_ca_is_refused(world, tmp_path):
    from firmament.core.clock import SystemClock
    from firmament.server.authority import ProvenRequest, issue_device_certificate, make_authority, read_request

    device = world.device()
    now = SystemClock().now()
    rogue = make_authority("Firmament device CA", now=now)
    request: ProvenRequest = read_request(device.key.request_pem(product="thermo", hardware="rpi4"))
    chain = issue_device_certificate(rogue, request, device_id=device.device_id, days=1, now=now)
    (device.directory / "chain.pem").write_text(chain)
    device.connect(world.server)
    with pytest.raises(Exception, match=r"(?i)ssl|tls|reset|aborted|alert"):
        device.poll()


def test_49_a_certificate_for_another_key_of_the_same_name_is_refused(world):
    """Even if the device CA were made to sign it: the key that enrolled counts."""
    from firmament.core.clock import SystemClock
    from firmament.durable import RealDisk
    from firmament.server.authority import issue_device_certificate, load_authority, read_request

    victim, thief = world.device(), world.new_device()
    authority = load_authority(RealDisk(), world.server.directory / "device-ca")
    request = read_request(thief.key.request_pem(product="thermo", hardware="rpi4"))
    chain = issue_device_certificate(authority, request, device_id=victim.device_id, days=1, now=SystemClock().now())
    thief.take(world.server, {"device_id": victim.device_id, "certificate_chain_pem": chain})
    assert thief.poll().code == "request/forbidden"
    assert victim.poll().status == 200


# --- polls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nonce", ["", "00", "zz" * 16, "00" * 15, "00" * 17, "AB" * 16])
def test_nonces_of_another_form_are_refused(world, nonce):
    device = world.devices[0] if world.devices[0].client else world.device()
    value = {"v": 1, "nonce": nonce, "version": "1.0", "sequence_number": 1}
    assert device.client.ask("POST", "/v1/poll", value).code == "request/malformed"


def test_a_body_above_the_ceiling_is_refused(world):
    device = world.device()
    answer = device.client.ask("POST", "/v1/poll", b"x" * (64 * 1024 + 1))
    assert (answer.status, answer.code) == (413, "request/too-large")


def test_a_device_that_can_apply_nothing_is_told_nothing_and_we_know_why(world):
    device = world.device()
    world.assign(device, "thermo/1.0")
    assert device.assignment(methods=("other/1",)) is None
    attempt = world.attempt(device)
    assert (attempt["status"], attempt["code"]) == ("assigned", "applicability/no-installer")
    assert device.assignment() is not None


# --- reports (case 49) -----------------------------------------------------------------------


@pytest.fixture
def on_trial(world):
    device = world.device()
    attempt_id = world.assign(device, "thermo/1.0")
    device.assignment()
    device.tell(attempt_id, "fetching")
    return device, attempt_id


def test_49_a_forged_report_is_refused(world, on_trial):
    device, attempt_id = on_trial
    stranger = IdentityKey.generate()
    envelope = device.envelope(attempt_id, "failed", key=stranger)
    assert device.report(envelope).code == "trust/signature"
    envelope["keyid"] = device.key.keyid
    assert device.report(envelope).code == "trust/signature"
    assert world.attempt(device)["status"] == "fetching"
    assert world.server.events("report.refused")[-1]["facts"]["code"] == "trust/signature"


def test_49_a_changed_report_is_refused(world, on_trial):
    device, attempt_id = on_trial
    envelope = device.envelope(attempt_id, "failed")
    payload = base64.b64decode(envelope["payload"]).replace(b"failed", b"trial ")
    envelope["payload"] = base64.b64encode(payload).decode()
    assert device.report(envelope).code == "trust/signature"
    envelope["payload_type"] = "application/json"
    assert device.report(envelope).code == "request/malformed"


def test_49_a_replayed_report_changes_nothing_and_another_under_its_number_is_refused(world, on_trial):
    device, attempt_id = on_trial
    first = device.envelope(attempt_id, "verified")
    assert device.report(first).json["accepted"] == [device.numbers]
    device.tell(attempt_id, "staged")
    assert device.report(first).json["accepted"] == [device.numbers - 1]  # the answer was lost: accepted again
    assert world.attempt(device)["status"] == "staged"
    other = device.envelope(attempt_id, "failed", number=device.numbers)
    assert device.report(other).code == "trust/replay"
    assert world.attempt(device)["status"] == "staged"


def test_49_another_devices_report_is_refused(world, on_trial):
    device, attempt_id = on_trial
    other = world.device()
    assert other.report(device.envelope(attempt_id, "failed")).code == "trust/signature"
    assert other.tell(attempt_id, "failed", device_id=device.device_id).code == "request/forbidden"
    assert other.tell(attempt_id, "failed").code == "request/forbidden"
    assert world.attempt(device)["status"] == "fetching"


def test_a_batch_takes_the_good_and_leaves_the_bad(world, on_trial):
    device, attempt_id = on_trial
    good = device.envelope(attempt_id, "verified")
    bad = device.envelope(attempt_id, "failed", key=IdentityKey.generate())
    answer = device.report(good, bad)
    assert (answer.status, answer.json["accepted"]) == (200, [device.numbers - 1])
    assert world.attempt(device)["status"] == "verified"


def test_a_report_about_an_attempt_nobody_knows_is_taken_so_that_the_device_goes_on(world, on_trial):
    device, _ = on_trial
    answer = device.tell("99999999-9999-4999-8999-999999999999", "failed")
    assert answer.json["accepted"] == [device.numbers]


def test_after_the_end_nothing_moves(world, on_trial):
    device, attempt_id = on_trial
    device.tell(attempt_id, "reverted", code="slot/health", message="no answer on port 80")
    attempt = world.attempt(device)
    assert (attempt["status"], attempt["code"], attempt["message"]) == (
        "reverted",
        "slot/health",
        "no answer on port 80",
    )
    device.tell(attempt_id, "fetching")
    assert world.attempt(device)["status"] == "reverted"


# --- people ----------------------------------------------------------------------------------


def test_nobody_gets_in_without_a_password_and_guessing_locks(world):
    world.add_person("bob", "viewer")
    with Client(world.server) as client:

        def login(password, name="bob"):
            return client.ask("POST", "/api/v1/login", {"name": name, "password": password})

        assert login("x" * 12, "nobody").code == "request/unauthenticated"
        assert login(PASSWORD).status == 200
        for _ in range(5):
            assert login("wrong password").code == "request/unauthenticated"
        locked = login(PASSWORD)
        assert locked.code == "request/unauthenticated"
        assert login("", "admin").code == "request/unauthenticated"
    assert world.server.events("person.locked")[-1]["subject"] == "bob"


def test_tokens_are_stored_hashed_and_expire(world):
    token = world.sign_in("admin").token
    with tables.snapshot(target_of(world.server.directory)) as reading:
        rows = [
            tables.encode_row(row)
            for table, columns in tables.table_columns().items()
            for row in tables.read_rows(reading, table, columns)
        ]
    stored = b"".join(rows)
    assert hash_token(token).hex().encode() in stored
    assert token.encode() not in stored
    assert token.encode().hex().encode() not in stored
    assert PASSWORD.encode() not in stored
    assert token not in world.server.log.read_text()
    answer = world.admin.ask("POST", "/api/v1/tokens", {"role": "viewer", "expires_in_s": 1})
    short = world.client(answer.json["token"])
    assert short.ask("GET", "/api/v1/products").status == 200
    time.sleep(1.1)
    assert short.ask("GET", "/api/v1/products").code == "request/unauthenticated"


def test_a_token_never_allows_more_than_its_maker(world):
    releaser = world.token("releaser", "thermo")
    for wanted in (
        {"role": "admin"},
        {"role": "operator"},
        {"role": "releaser"},
        {"role": "releaser", "product": "pump"},
    ):
        assert releaser.ask("POST", "/api/v1/tokens", {**wanted, "expires_in_s": 60}).code == "request/forbidden"
    made = releaser.ask("POST", "/api/v1/tokens", {"role": "viewer", "product": "thermo", "expires_in_s": 60})
    assert made.status == 201


def test_signing_out_and_disabling_make_tokens_useless(world):
    session = world.sign_in("admin")
    assert session.ask("POST", "/api/v1/logout").status == 204
    assert session.ask("GET", "/api/v1/products").code == "request/unauthenticated"
    world.add_person("carol", "viewer")
    carol = world.sign_in("carol")
    assert carol.ask("GET", "/api/v1/people").code == "request/forbidden"
    assert world.admin.ask("DELETE", "/api/v1/people/carol").status == 204
    assert carol.ask("GET", "/api/v1/products").code == "request/unauthenticated"


def test_every_operator_path_asks_who_is_there(world):
    with Client(world.server) as client:
        paths = client.ask("GET", "/openapi.json").json["paths"]
        asked = 0
        for path, methods in paths.items():
            for method in methods:
                if path in {"/health", "/healthz", "/readyz", "/api/v1/login", "/metrics"} or path.startswith(
                    "/api/v1/outside"
                ):
                    continue  # ways in, and metrics, which are open to this machine alone (test_out)
                real = path.replace("{sha256}", "0" * 64).replace("{number}", "1").replace("{", "").replace("}", "")
                query = "?device_type=thermo&version=1" if "updates" in path else ""
                answer = client.ask(method.upper(), real + query, b"{}")
                assert answer.status == 401, (method, path, answer.status)
                asked += 1
    assert asked >= 25


def test_unknown_paths_and_methods_are_problems_too(world):
    assert world.admin.ask("GET", "/api/v1/nothing").code == "request/not-found"
    assert world.admin.ask("PATCH", "/api/v1/products").code == "request/malformed"
    assert world.admin.ask("GET", "/api/v1/updates/check").code == "request/malformed"
    assert world.admin.ask("GET", "/api/v1/devices?cursor=x").code == "request/malformed"
    assert world.devices[0].client.ask("PUT", "/v1/poll", b"").code == "request/malformed"


def test_uploads_must_be_what_their_name_says(world):
    wrong = world.admin.ask("PUT", f"/api/v1/blobs/{sha256(b'a')}", b"b")
    assert wrong.code == "trust/digest-mismatch"
    assert world.admin.ask("HEAD", f"/api/v1/blobs/{sha256(b'a')}").status == 404
    assert world.admin.ask("PUT", "/api/v1/blobs/short", b"b").code == "request/malformed"
    assert not list((world.server.directory / "blobs" / "incoming").iterdir())
    assert Digest.of(b"a").hex == sha256(b"a")


# --- the same again (idempotency keys) ----------------------------------------------------------


def keyed(client, key, method, path, body=None):
    return client.ask(method, path, body, headers={"idempotency-key": key})


def test_a_change_that_is_sent_again_is_done_once_and_answered_alike(world):
    body = {"role": "viewer", "expires_in_s": 3600, "label": "once"}
    answers = [keyed(world.admin, "make-token", "POST", "/api/v1/tokens", body) for _ in range(3)]
    assert [answer.status for answer in answers] == [201] * 3
    assert len({answer.body for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    assert len(world.server.rows("SELECT id FROM token WHERE label = 'once'")) == 1
    (kept,) = world.server.rows("SELECT sealed_answer FROM repeat WHERE name = 'make-token'")
    assert answers[0].json["token"].encode() not in bytes(kept["sealed_answer"])


def test_a_key_is_for_one_request_of_one_caller(world):
    group = {"query": "hardware=rpi4"}
    assert keyed(world.admin, "k1", "PUT", "/api/v1/groups/first", group).status == 204
    other = keyed(world.admin, "k1", "PUT", "/api/v1/groups/second", group)
    assert (other.status, other.code) == (409, "repeat/key-reused")
    assert "second" not in {row["name"] for row in world.server.rows("SELECT name FROM device_group")}
    # A lesser token of the same person is not shown what the first was told.
    assert keyed(world.token("operator"), "k1", "PUT", "/api/v1/groups/first", group).code == "repeat/key-reused"
    # Another person's key is another key.
    person = {"name": "olga", "role": "operator", "password": PASSWORD}
    assert world.admin.ask("POST", "/api/v1/people", person).status == 201
    assert keyed(world.sign_in("olga"), "k1", "PUT", "/api/v1/groups/third", group).status == 204


def test_a_refusal_uses_no_key_up(world):
    assert keyed(world.admin, "k2", "PUT", "/api/v1/groups/late", {"query": "("}).code == "request/malformed"
    assert keyed(world.admin, "k2", "PUT", "/api/v1/groups/late", {"query": "hardware=rpi4"}).status == 204


def test_a_key_gives_nobody_in(world):
    with Client(world.server, token="ota_nobody") as stranger:
        assert keyed(stranger, "k3", "PUT", "/api/v1/groups/x", {}).code == "request/unauthenticated"
    for key in ("", "a b", "x" * 129, "\u00e9"):
        answer = world.admin.ask("PUT", "/api/v1/groups/x", {}, headers={"idempotency-key": key.encode("latin-1")})
        assert answer.code == "request/malformed", key


def test_what_was_done_without_an_answer_is_said_so(world):
    keyed(world.admin, "k4", "PUT", "/api/v1/groups/lost", {"query": "hardware=rpi4"})
    # As after a crash between the commit and the answer.
    world.server.change("UPDATE repeat SET status = NULL, sealed_answer = NULL WHERE name = 'k4'")
    busy = keyed(world.admin, "k4", "PUT", "/api/v1/groups/lost", {"query": "hardware=rpi4"})
    assert (busy.status, busy.code, busy.headers["retry-after"]) == (409, "repeat/busy", "1")
    world.server.change("UPDATE repeat SET begun_at = begun_at - 60 WHERE name = 'k4'")
    lost = keyed(world.admin, "k4", "PUT", "/api/v1/groups/lost", {"query": "hardware=rpi4"})
    assert (lost.status, lost.code) == (409, "repeat/answer-lost")


# --- the connection --------------------------------------------------------------------------


@contextlib.contextmanager
def raw(world):
    context = ssl.create_default_context(cafile=str(world.server.ca))
    with (
        socket.create_connection(("127.0.0.1", world.server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


def test_a_head_that_never_ends_is_cut(world):
    with raw(world) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        assert connection.recv(100) == b""


def test_a_head_above_the_ceiling_is_refused(world):
    with raw(world) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + b"x: " + b"y" * 20_000 + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 431")


def test_plain_http_and_old_tls_get_nothing(world):
    with socket.create_connection(("127.0.0.1", world.server.port), timeout=10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" not in plain.recv(100)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(world.server.ca)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of what is to be refused here
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", world.server.port), timeout=10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname="localhost")
