"""Attacks on who gets what (trust.md §10, 41 to 50, 63): the director's keys are the attacker's where it says so."""

import subprocess
import time
import uuid
from dataclasses import replace

import pytest
from attack.forge import PRODUCT, ed25519
from attack.hostile import make_bundle
from support.programs import Program
from support.world import HARDWARE
from tuf.api.metadata import Metadata, TargetFile

from firmament.core.digest import Digest
from firmament.core.manifest import Image, Requires
from firmament.errors import (
    DeviceMismatchError,
    DisagreementError,
    HardwareMismatchError,
    LockedError,
    MalformedMetadataError,
    ReplayError,
    RequirementError,
    RollbackError,
    ThresholdNotMetError,
    UnknownManifestError,
    UnknownTargetError,
)


def reports_refused(stage, code: str) -> bool:
    return any(report.status == "refused" and report.code == code for report in stage.server.reports)


def test_41_another_devices_answer_replayed(stage):
    """The director's answer for another device is served to this one."""
    stage.server.release("1.1", 2)
    stage.world.on_poll = lambda request, make: make(device_id=str(uuid.uuid4()))
    stage.refused(DeviceMismatchError)


def test_41_targets_of_another_device(stage):
    """The timestamp is for this device, the targets are another one's."""
    stage.server.release("1.1", 2)
    version = next(stage.world.version)

    def mixed(request, make):
        return replace(make(version=version), targets=make(device_id=str(uuid.uuid4()), version=version).targets)

    stage.world.on_poll = mixed
    stage.refused(DeviceMismatchError)


def test_42_relay_with_the_victims_nonce(stage):
    """An attacker's device polls with the victim's nonce; the answer names the attacker's device."""
    stage.server.release("1.1", 2)
    stage.world.on_poll = lambda request, make: make(nonce=request.nonce, device_id=str(uuid.uuid4()))
    stage.refused(DeviceMismatchError)


def test_42_an_answer_to_another_question(stage):
    """An answer made for another nonce."""
    stage.server.release("1.1", 2)
    stage.world.on_poll = lambda request, make: make(nonce=b"\0" * 16)
    stage.refused(ReplayError)


@pytest.mark.parametrize("hardware", [("cm4",), (HARDWARE.upper(),), (f"{HARDWARE}x", f"x{HARDWARE}")])
def test_43_wrong_hardware(stage, hardware):
    """A genuine release for other hardware is assigned."""
    stage.server.release("1.1", 2, hardware=hardware)
    stage.refused(HardwareMismatchError)
    assert reports_refused(stage, HardwareMismatchError.code)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"v": 2}, UnknownManifestError),
        ({"action": "wipe"}, UnknownManifestError),
        ({"device": str(uuid.uuid4())}, DeviceMismatchError),
        ({"payload": "../../etc/passwd"}, MalformedMetadataError),
        ({"attempt_id": "../x"}, MalformedMetadataError),
    ],
    ids=["version", "action", "device", "path", "attempt"],
)
def test_43_an_assignment_that_is_not_understood(stage, monkeypatch, change, error):
    """With the director's keys: an assignment says something unknown or outrageous."""
    stage.server.release("1.1", 2)
    kind = type(stage.world.assignment)
    custom = kind.custom
    monkeypatch.setattr(kind, "custom", lambda self, device_id: {**custom(self, device_id), **change})
    stage.refused(error)


def test_44_an_image_that_no_author_signed(stage):
    """With the director's keys: a target that the image repository does not know."""
    manifest = stage.server.release("1.1", 2)
    stage.world.assign(manifest, target=f"{PRODUCT}/9.9/image.bin")
    stage.refused(UnknownTargetError)
    assert reports_refused(stage, UnknownTargetError.code)


@pytest.mark.parametrize("change", [{"digest": Digest.of(b"evil")}, {"length_bytes": 4}], ids=["digest", "length"])
def test_45_the_director_changes_digest_or_length(stage, change):
    """With the director's keys: a known image, described otherwise."""
    stage.world.assign(stage.server.release("1.1", 2), **change)
    stage.refused(DisagreementError)


def test_46_an_older_signed_image(stage):
    """With the director's keys: an old release, correctly signed for this device, is assigned again."""
    old = stage.server.release("0.9", 1)
    stage.server.release("1.1", 2)
    stage.accepted("1.1")
    stage.world.assign(old)
    stage.refused(RollbackError, still="1.1")
    assert reports_refused(stage, RollbackError.code)


def test_67_an_older_signed_image_by_the_way_back(stage):
    """With the director's keys: the device is asked to go back to the release it ran before."""
    old = stage.server.release("0.9", 1)
    stage.accepted("0.9")
    stage.server.release("1.1", 2)
    stage.accepted("1.1")
    installed = stage.server.reports[-1].attempt_id
    stage.world.assign(old, takes_back=installed)
    stage.refused(RollbackError, still="1.1")
    assert reports_refused(stage, RollbackError.code)


@pytest.mark.parametrize("requires", [Requires(min_sequence_number=5), Requires(min_agent=99)], ids=["stone", "agent"])
def test_47_unmet_requirements(stage, requires):
    """A release that needs another one first, or a newer agent, is assigned."""
    stage.server.release("1.9", 9, requires=requires)
    stage.refused(RequirementError)


def test_48_more_than_one_release_at_once(stage):
    """With the director's keys: two releases in one answer, to be mixed on the device."""
    stage.server.release("1.1", 2)
    version = next(stage.world.version)

    def two(request, make):
        reply = make(version=version)
        metadata = Metadata.from_bytes(reply.targets.encode())
        path = f"{PRODUCT}/1.2/image.bin"
        metadata.signed.targets[path] = TargetFile(1, {"sha256": "0" * 64}, path)
        metadata.sign(stage.world.director["targets"])
        return replace(reply, targets=metadata.to_bytes().decode())

    stage.world.on_poll = two
    stage.refused(MalformedMetadataError)


def test_50_two_agents_at_once(stage):
    """A second agent starts while one is at work: it is refused, the first goes on."""
    stage.server.release("1.1", 2)
    victim = stage.victim
    first = Program(
        ["firmament-agent", "--config", victim.config, "run"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 20
        while not (victim.directory / "agent.sock").exists():
            assert first.poll() is None, first.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = victim.run("run")
        assert second.exit_code == LockedError.exit_code, second.err
        assert str(first.pid) in second.err
        assert first.poll() is None
    finally:
        first.terminate()
        first.wait(timeout=20)
        first.stderr.close()
    stage.told.append({"code": LockedError.code, "asked": []})


def test_63_everything_online_is_stolen(stage):
    """All online keys and the storage are the attacker's; the author's keys are not: no code runs."""
    image = stage.image
    manifest = stage.server.release("1.1", 2)
    evil = make_bundle("6.6")
    payload = replace(manifest.payloads[0], digest=Digest.of(evil), length_bytes=len(evil))
    forged = replace(manifest, payloads=(payload,), image=Image(payload.digest, len(evil)))
    image.keys[PRODUCT] = ed25519()  # he has to make one of his own
    honest_targets = image.files[f"{image.versions['targets']}.targets.json"]
    image.releases["1.1"] = forged
    image.blobs[f"{PRODUCT}/1.1/{payload.digest.hex}.image.bin"] = evil
    image.publish()
    # Top-level targets he cannot sign: the honest ones, at whatever version his snapshot says.
    image.files[f"{image.versions['targets']}.targets.json"] = honest_targets
    stage.world.assign(forged)
    ran = stage.victim.run("all", "--yes")
    assert ran.code.startswith("trust/"), ran.err
    stage.still("1.0")
    stage.told.append({"code": ran.code, "asked": stage.server.asked[-2:]})


def test_63_and_signs_the_delegation_himself(stage):
    """All online keys are stolen, and the attacker signs the delegations with a key of his own."""
    image = stage.image
    manifest = stage.server.release("1.1", 2)
    image.keys["targets"] = image.keys[PRODUCT] = ed25519()
    image.publish()
    stage.world.assign(manifest)
    stage.refused(ThresholdNotMetError)


def test_64_a_director_whose_versions_go_back(stage):
    """The director was restored from a backup and counts from the beginning: the device notices."""
    assert stage.victim.run("check").exit_code == 5
    stage.server.release("1.1", 2)
    stage.world.on_poll = lambda request, make: make(version=5)
    stage.refused(RollbackError)
