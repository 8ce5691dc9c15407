"""What the server asks of a place for payloads, on a directory and on a real object store alike."""

import asyncio
import os
from datetime import UTC, datetime, timedelta

import pytest
from support.swift import SECRET_KEY

from firmament.core.clock import SystemClock
from firmament.core.digest import Digest
from firmament.errors import (
    DigestMismatchError,
    DiskFullError,
    NotFoundError,
    OverloadedError,
    SettingError,
    TooLargeError,
)
from firmament.server.layout import Layout
from firmament.server.payloads import s3
from firmament.server.payloads.opening import open_blobs
from firmament.server.payloads.port import require_blob
from firmament.server.payloads.s3_account import S3Account, read_account
from firmament.server.payloads.s3_multipart import Multiparts
from firmament.server.payloads.store import ServerDisk
from firmament.server.settings import ServerSettings

DATA = os.urandom(200_000)
DIGEST = Digest.of(DATA)
NAME = f"thermo/1.0/{DIGEST.hex}.image+1.bin"
LATER = timedelta(hours=1)


@pytest.fixture(params=["directory", "s3"])
def open_store(request, tmp_path):
    """Make a store with other limits: `open_store(max_blob_bytes=10)`; always the same place."""
    options = {}
    if request.param == "s3":
        prefix = f"{request.node.name.partition('[')[0]}/"
        options = request.getfixturevalue("swift").settings(tmp_path, prefix)

    def opened(**changes):
        settings = ServerSettings(**{"min_free_bytes": 0, **options, **changes})
        return open_blobs(ServerDisk(), Layout(tmp_path), settings, SystemClock())

    return opened


@pytest.fixture
def store(open_store):
    return open_store()


def put(store, data):
    upload = store.receive(Digest.of(data), expected_bytes=len(data))
    for start in range(0, len(data), 70_000):
        upload.write(data[start : start + 70_000])
    length = upload.finish()
    upload.abandon()
    return length


def fetch(store, name, offset=0, end=None):
    async def story():
        source = await store.open_target(name)
        try:
            return b"".join([chunk async for chunk in source.read(offset, end or source.length_bytes)])
        finally:
            source.close()

    return asyncio.run(story())


def test_what_was_sent_is_there_whole_and_can_be_published(store, tmp_path):
    assert store.length_bytes(DIGEST) is None
    assert not store.is_intact(DIGEST)
    with pytest.raises(NotFoundError):
        store.open_blob(DIGEST)
    assert put(store, DATA) == len(DATA)
    assert put(store, DATA) == len(DATA)  # sending it again changes nothing
    assert store.length_bytes(DIGEST) == len(DATA)
    assert store.is_intact(DIGEST)
    require_blob(store, DIGEST, len(DATA), target="x")
    reader = store.open_blob(DIGEST)
    assert reader.length_bytes == len(DATA)
    assert reader.read_at(100, 50) == DATA[100:150]
    assert reader.read_at(len(DATA) - 5, 50) == DATA[-5:]
    assert reader.read_at(len(DATA), 50) == b""
    reader.close()
    with pytest.raises(NotFoundError):
        asyncio.run(store.open_target(NAME))  # not published
    assert store.target_length_bytes(NAME) is None
    for _ in range(2):
        store.publish(NAME, DIGEST)
    assert store.target_length_bytes(NAME) == len(DATA)
    assert fetch(store, NAME) == DATA
    assert fetch(store, NAME, 65_000, 140_001) == DATA[65_000:140_001]
    assert list((tmp_path / "blobs" / "incoming").iterdir()) == []


def test_an_entity_tag_stands_for_the_bytes(store):
    put(store, DATA)
    store.publish(NAME, DIGEST)

    async def tag():
        source = await store.open_target(NAME)
        source.close()
        return source.etag

    first = asyncio.run(tag())
    assert first == asyncio.run(tag())
    assert first.startswith('"')
    assert first.endswith('"')


def test_wrong_bytes_never_become_a_blob(store, tmp_path):
    upload = store.receive(DIGEST, expected_bytes=None)
    upload.write(DATA[:-1])
    with pytest.raises(DigestMismatchError):
        upload.finish()
    upload.abandon()
    assert store.length_bytes(DIGEST) is None
    assert list(store.blobs()) == []
    assert list((tmp_path / "blobs" / "incoming").iterdir()) == []
    with pytest.raises(DigestMismatchError, match="not uploaded"):
        require_blob(store, DIGEST, len(DATA), target="x")


def test_limits_are_told_before_a_byte_is_taken_and_while_they_come(open_store):
    with pytest.raises(TooLargeError):
        open_store(max_blob_bytes=10).receive(DIGEST, expected_bytes=11)
    upload = open_store(max_blob_bytes=10).receive(DIGEST, expected_bytes=None)
    with pytest.raises(TooLargeError):
        upload.write(DATA)
    upload.abandon()
    with pytest.raises(DiskFullError):
        open_store(min_free_bytes=2**62).receive(DIGEST, expected_bytes=1)


def test_what_a_killed_server_left_is_swept(store, tmp_path):
    store.receive(DIGEST, expected_bytes=None).write(DATA[:10])
    assert len(list((tmp_path / "blobs" / "incoming").iterdir())) == 1
    store.sweep()
    assert list((tmp_path / "blobs" / "incoming").iterdir()) == []


def test_listings_tell_digest_length_and_time_and_removal_is_final(store):
    before = datetime.now(UTC) - timedelta(minutes=1)
    others = [os.urandom(10) for _ in range(3)]
    for data in (DATA, *others):
        put(store, data)
    store.publish(NAME, DIGEST)
    listed = {blob.digest: blob for blob in store.blobs()}
    assert {digest: blob.length_bytes for digest, blob in listed.items()} == {
        Digest.of(data): len(data) for data in (DATA, *others)
    }
    assert all(before < blob.stored_at < before + LATER for blob in listed.values())
    assert before < store.stored_at(DIGEST) < before + LATER
    (target,) = store.targets()
    assert (target.name, target.digest) == (NAME, DIGEST)
    for _ in range(2):
        store.remove(DIGEST, (NAME,))
    assert store.stored_at(DIGEST) is None
    assert list(store.targets()) == []
    assert len(list(store.blobs())) == 3
    with pytest.raises(NotFoundError):
        fetch(store, NAME)


def test_a_front_server_is_told_where_the_bytes_are_but_never_the_keys(store):
    put(store, DATA)
    store.publish(NAME, DIGEST)
    where = store.redirect(NAME)
    assert DIGEST.hex in where
    assert not where.startswith("/")
    assert SECRET_KEY not in where


# --- what only an object store has ---------------------------------------------------------


def bucket(swift, directory, prefix, **changes):
    settings = ServerSettings(**{"min_free_bytes": 0, **swift.settings(directory, prefix), **changes})
    return open_blobs(ServerDisk(), Layout(directory), settings, SystemClock())


def test_a_long_payload_goes_in_parts(swift, tmp_path):
    store = bucket(swift, tmp_path, "parts/")
    data = os.urandom(s3.PART_BYTES + 100_000)
    put(store, data)
    name = f"thermo/1.0/{Digest.of(data).hex}.bin"
    store.publish(name, Digest.of(data))
    assert fetch(store, name, s3.PART_BYTES - 10, s3.PART_BYTES + 10) == data[s3.PART_BYTES - 10 : s3.PART_BYTES + 10]
    assert store.is_intact(Digest.of(data))


def test_an_upload_in_parts_that_was_cut_short_shows_nothing_and_is_cleaned_away(swift, tmp_path):
    """A server is killed between two parts: the object is not there, and its parts go with gc."""
    import urllib3

    store = bucket(swift, tmp_path, "cut/")
    account = read_account(ServerDisk(), tmp_path, ServerSettings(**swift.settings(tmp_path, "cut/")))
    now, key = SystemClock().now(), store.key(DIGEST)
    begun = urllib3.request("POST", account.signed_url("POST", key, {"uploads": ""}, now, life_s=60), retries=False)
    upload_id = begun.data.decode().partition("<UploadId>")[2].partition("<")[0]
    query = {"partNumber": "1", "uploadId": upload_id}
    part = urllib3.request("PUT", account.signed_url("PUT", key, query, now, life_s=60), body=DATA, retries=False)
    assert (begun.status, part.status) == (200, 200)

    assert store.length_bytes(DIGEST) is None
    assert list(store.blobs()) == []
    assert store.clean(now - LATER, pretend=False) == 0  # it may still be going on
    assert store.clean(now + LATER, pretend=True) == 1
    assert store.clean(now + LATER, pretend=False) == 1
    assert list(Multiparts(account, SystemClock()).list("cut/")) == []
    put(store, DATA)
    assert store.is_intact(DIGEST)


def test_a_store_that_is_away_is_an_answer_and_comes_back_by_itself(swift, tmp_path):
    store = bucket(swift, tmp_path, "away/")
    put(store, DATA)
    store.publish(NAME, DIGEST)
    fetch(store, NAME)
    swift.kill("object", "proxy")
    try:
        for question in (
            lambda: store.length_bytes(DIGEST),
            lambda: store.receive(DIGEST, expected_bytes=None),
            lambda: fetch(store, NAME),
            lambda: list(store.blobs()),
            lambda: store.clean(datetime.now(UTC), pretend=False),
            store.check,
        ):
            with pytest.raises(OverloadedError) as refused:
                question()
            assert refused.value.facts["retry_after_s"] == s3.AWAY_RETRY_S
            assert str(swift.ports["proxy"]) not in str(refused.value)  # not told to devices
    finally:
        swift.start("object", "proxy")
    store.check()
    assert fetch(store, NAME) == DATA


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"s3_bucket": "No"}, "not the name of a bucket"),
        ({"s3_bucket": "not-there"}, "no such bucket"),
        ({"s3_endpoint": "ftp://x"}, "written as https://host:port"),
        ({"s3_endpoint": "https://key@host"}, "Keys do not belong"),
        ({"s3_endpoint": "https://host/path"}, "written as https://host:port"),
        ({"s3_prefix": "../x"}, "A prefix is written as"),
        ({"s3_addressing": "both"}, "one of the known words"),
        ({"s3_access_key_file": ""}, "needs a file with each key"),
        ({"s3_secret_key_file": "nothing"}, "cannot be read"),
        ({"s3_secret_key_file": "two"}, "does not hold one key"),
        ({"s3_secret_key_file": "s3-access"}, "refuses the given keys"),
        ({"s3_ca": "nothing"}, "cannot be read"),
    ],
)
def test_settings_that_can_never_work_are_refused(swift, tmp_path, changes, sentence):
    (tmp_path / "two").write_text("one two\n")
    with pytest.raises(SettingError, match=sentence) as refused:
        bucket(swift, tmp_path, "refused/", **changes).check()
    assert SECRET_KEY not in str(refused.value)


def test_keys_are_not_shown():
    account = S3Account("https://x", "b", "", "r", False, "access", "secret", "pem")
    assert "access" not in repr(account)
    assert "secret" not in repr(account)
    # An address of another bucket form, signed: the host is in the signature, the secret is not in the text.
    virtual = S3Account("https://x", "b", "", "r", True, "access", "secret")
    url = virtual.signed_url("GET", "a/b", {}, datetime(2026, 1, 2, tzinfo=UTC), life_s=60)
    assert url.startswith("https://b.x/a/b?")
    assert "secret" not in url
