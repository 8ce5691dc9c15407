"""Content keys at rest, and the rule that says why a device is given none."""

from datetime import UTC, datetime

import pytest

from firmament.core.digest import Digest
from firmament.core.manifest import Image, Manifest, Payload
from firmament.errors import KeyFileError, KeyWrapError
from firmament.payload import wrap
from firmament.payload.wrap import Custody, Purpose
from firmament.server.payloads.content_keys import HINTS, LOST, NO_KEY, REVOKED, WITHHELD, Held, Openable
from firmament.server.payloads.custody import Custodian, key_files, keyid_of, load_custodian, make_key
from firmament.server.payloads.store import ServerDisk
from firmament.server.rollouts.why import DeviceFacts, PollFacts, Question, Verdict, first_missing, judge

KEY = bytes(range(32))
CUSTODY = Custody("thermo/2.0", bytes(32))
DEVICE = DeviceFacts("11111111-1111-4111-8111-111111111111", "thermo", "rpi4", 1, "1.0", False, {})


def sealed(target, method="whole", precursor=None):
    inner = {"method": method, "method_version": 1, "length_bytes": 1}
    return Payload("sealed", 1, target, 90, Digest.of(target.encode()), precursor, {"inner": inner})


WHOLE = sealed("thermo/2.0/whole.sealed")
DELTA = sealed("thermo/2.0/delta.sealed", "refdelta", Digest.of(b"1"))
MANIFEST = Manifest(
    product="thermo", version="2.0", sequence_number=2, hardware=("rpi4",), installer="image", confidential=True,
    image=Image(Digest.of(b"two"), 3), payloads=(WHOLE, DELTA), created_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip


def test_the_first_start_makes_a_key_file_that_only_the_server_reads(tmp_path):
    disk, directory = ServerDisk(), tmp_path / "content"
    custodian = load_custodian(disk, directory)
    (path,) = key_files(disk, directory)
    assert (path.name, path.stat().st_mode & 0o777, directory.stat().st_mode & 0o777) == ("1.key", 0o600, 0o700)
    assert load_custodian(disk, directory).keyid == custodian.keyid == keyid_of(wrap.public_of(path.read_bytes()))
    path.chmod(0o400)
    assert load_custodian(disk, directory).keyid == custodian.keyid
    path.chmod(0o640)
    with pytest.raises(KeyFileError):
        load_custodian(disk, directory)
    path.chmod(0o600)
    path.write_bytes(bytes(95))
    with pytest.raises(KeyFileError):
        load_custodian(disk, directory)


def test_what_was_wrapped_before_a_rotation_opens_until_the_old_file_is_gone(tmp_path):
    disk, directory = ServerDisk(), tmp_path / "content"
    before = load_custodian(disk, directory)
    wrapped = wrap.wrap(KEY, before.public_key, CUSTODY)
    make_key(disk, directory)
    both = load_custodian(disk, directory)
    assert both.keyid != before.keyid
    assert both.open(wrapped, before.keyid, CUSTODY) == KEY
    anew = both.renew(wrapped, before.keyid, CUSTODY)
    (directory / "1.key").unlink()
    after = load_custodian(disk, directory)
    assert after.open(anew, after.keyid, CUSTODY) == KEY
    with pytest.raises(KeyWrapError):
        after.open(wrapped, before.keyid, CUSTODY)
    for _ in range(16):
        make_key(disk, directory)
    with pytest.raises(KeyFileError):
        key_files(disk, directory)


def test_a_wrap_for_a_server_is_none_for_a_device_and_the_other_way_round():
    private, public = wrap.generate()
    purpose = Purpose("", CUSTODY.release_id, CUSTODY.sealed_sha256)
    for made_for, asked in ((CUSTODY, purpose), (purpose, CUSTODY)):
        with pytest.raises(KeyWrapError):
            wrap.unwrap(wrap.wrap(KEY, public, made_for), private, asked)
    assert wrap.is_usable(public)
    assert not wrap.is_usable(public[:-1])
    assert not wrap.is_usable(b"\xff" * len(public))


def test_a_device_gets_its_own_wrap_of_what_it_is_named():
    server, device = Custodian([wrap.generate()[0]]), wrap.generate()
    held = Held(wrap.wrap(KEY, server.public_key, CUSTODY), server.keyid, CUSTODY)
    openable = Openable({WHOLE.target: held}, WITHHELD, device[1])
    one = openable.wrap_for(server, WHOLE, device_id=DEVICE.device_id)
    assert wrap.unwrap(one, device[0], Purpose(DEVICE.device_id, "thermo/2.0", bytes(32))) == KEY
    assert openable.wrap_for(server, None, device_id=DEVICE.device_id) is None
    plain = Payload("whole", 1, "thermo/2.0/whole", 3, Digest.of(b"two"))
    assert openable.wrap_for(server, plain, device_id=DEVICE.device_id) is None


def test_a_lost_key_file_closes_what_it_opened_and_nothing_else():
    server = Custodian([wrap.generate()[0]])
    here, gone = Held(b"", server.keyid, CUSTODY), Held(b"", "0" * 32, CUSTODY)
    whole = Openable({WHOLE.target: here, DELTA.target: here})
    assert whole.within(server) is whole
    part = Openable({WHOLE.target: here, DELTA.target: gone}).within(server)
    assert (set(part.held), part.reason) == ({WHOLE.target}, LOST)
    assert LOST in HINTS


def content_key(openable, **changes):
    found = judge(Question(DEVICE, MANIFEST, False, datetime(2026, 1, 2, tzinfo=UTC), openable=openable, **changes))
    return next((finding for finding in found if finding.rule == "content-key"), None)


def test_the_rule_says_why_no_key_is_given_and_what_to_do():
    held = Held(b"", "", CUSTODY)
    for reason, hint in ((REVOKED, "Register"), (NO_KEY, "Register"), (WITHHELD, "give-keys")):
        finding = content_key(Openable(reason=reason))
        assert (finding.verdict, finding.sentence) == (Verdict.BLOCK, f"The release is sealed, and {reason}.")
        assert hint in finding.hint
    assert content_key(Openable({WHOLE.target: held})).verdict is Verdict.PASS
    assert content_key(None) is None
    able = PollFacts(5, ("sealed/1", "whole/1", "refdelta/1"), str(DELTA.precursor_digest))
    assert content_key(Openable({DELTA.target: held}), poll=able).verdict is Verdict.PASS
    elsewhere = PollFacts(5, able.methods, str(Digest.of(b"another")))
    assert content_key(Openable({DELTA.target: held}, WITHHELD), poll=elsewhere).verdict is Verdict.BLOCK
    question = Question(
        DEVICE, MANIFEST, False, datetime(2026, 1, 2, tzinfo=UTC), openable=Openable(reason=REVOKED), poll=able
    )  # fmt: skip
    assert first_missing(question).rule == "content-key", "the engine starts no device that could not open it"
