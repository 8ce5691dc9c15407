"""MCUboot images that imgtool made, and what attackers make of them (case 58)."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pem import private_pem, public_pem

from firmament.errors import (
    DigestMismatchError,
    FirmamentError,
    KeyFileError,
    KeyWrapError,
    MalformedError,
    PassphraseError,
    SignatureError,
    TooLargeError,
)
from firmament.payload import mcuboot
from firmament.payload.mcuboot import layout
from firmament.payload.mcuboot.layout import TlvType
from firmament.payload.readers import BytesReader
from firmament.release import mcuboot_build
from firmament.release.mcuboot_build import Recipe

APPLICATION = bytes(range(256)) * 20
RECIPE = Recipe("1.2.3+4", 7, dependencies=("1:2.0.0", "2:0.9.1+5"), vendor="example.com", class_name="sensor-a")
KEYS = {
    "rsa-2048": rsa.generate_private_key(65537, 2048),
    "rsa-3072": rsa.generate_private_key(65537, 3072),
    "ecdsa-p256": ec.generate_private_key(ec.SECP256R1()),
    "ecdsa-p384": ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}
WRAPS = {
    "rsa-2048": (KEYS["rsa-2048"], rsa.generate_private_key(65537, 2048)),
    "ecdsa-p256": (KEYS["ecdsa-p256"], ec.generate_private_key(ec.SECP256R1())),
    "ed25519": (KEYS["ed25519"], x25519.X25519PrivateKey.generate()),
}

MAKERS = {
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "ecdsa-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": x25519.X25519PrivateKey.generate,
}


def make(name="ed25519", recipe=RECIPE, application=APPLICATION):
    return mcuboot_build.make(application, recipe, key=private_pem(KEYS[name]))


def check(image, name="ed25519", content_key=None):
    source = BytesReader(image)
    found = mcuboot.read_image(source, len(image))
    mcuboot.verify(found, source, mcuboot.load_public_key(public_pem(KEYS[name])), content_key=content_key)
    return found


@pytest.fixture(scope="module")
def image():
    return make()


def areas(image):
    """Split an image into header with body, the protected entries and the others."""
    found = mcuboot.read_image(BytesReader(image), len(image))
    start = found.header_length_bytes + found.body_length_bytes
    entries = [(tlv.is_protected, tlv.type, image[tlv.offset : tlv.offset + tlv.length_bytes]) for tlv in found.tlvs]
    return image[:start], entries


def join(front, entries):
    protected, others = (
        b"".join(
            struct.pack("<HH", kind, len(value)) + value
            for is_protected, kind, value in entries
            if is_protected is area
        )
        for area in (True, False)
    )
    head = bytearray(front)
    struct.pack_into("<H", head, 10, len(protected) + 4 if protected else 0)
    first = struct.pack("<HH", 0x6908, len(protected) + 4) + protected if protected else b""
    return bytes(head) + first + struct.pack("<HH", 0x6907, len(others) + 4) + others


@pytest.mark.parametrize("name", KEYS)
def test_what_imgtool_signs_is_read_and_verified(name):
    found = check(make(name), name)
    assert (found.version, found.security_counter) == ("1.2.3+4", 7)
    assert [(item.image, item.version) for item in found.dependencies] == [(1, "2.0.0+0"), (2, "0.9.1+5")]
    assert found.vendor_id is not None
    assert found.class_id is not None
    assert found.header_length_bytes == 512
    assert not found.is_encrypted


def test_ed25519_over_the_image_itself():
    check(make(recipe=replace(RECIPE, is_pure=True)))


@pytest.mark.parametrize("other", [name for name in KEYS if name != "ed25519"])
def test_another_kind_of_key_does_not_verify(image, other):
    with pytest.raises(SignatureError):
        check(image, other)


def test_another_key_of_the_same_kind_does_not_verify(image):
    stranger = ed25519.Ed25519PrivateKey.generate()
    source = BytesReader(image)
    with pytest.raises(SignatureError, match="another key than the pinned one"):
        mcuboot.verify(mcuboot.read_image(source, len(image)), source, mcuboot.load_public_key(public_pem(stranger)))


def test_taking_an_image_apart_and_joining_it_changes_nothing(image):
    assert join(*areas(image)) == image


def without(entries, *kinds):
    return [entry for entry in entries if entry[1] not in kinds]


STRIPPED = {
    "signature": (TlvType.ED25519,),
    "hash": (TlvType.SHA256, TlvType.SHA512),
    "key": (TlvType.KEYHASH,),
    "all": (TlvType.ED25519, TlvType.KEYHASH, TlvType.SHA256, TlvType.SHA512),
}


@pytest.mark.parametrize("name", STRIPPED)
def test_58_what_was_stripped_is_missed(image, name):
    """imgtool itself says OK to an image without a signature when it is given no key."""
    front, entries = areas(image)
    with pytest.raises((SignatureError, MalformedError)):
        check(join(front, without(entries, *STRIPPED[name])))


PROTECTED = sorted({TlvType.SECURITY_COUNTER, TlvType.DEPENDENCY, TlvType.VENDOR_ID, TlvType.CLASS_ID})


@pytest.mark.parametrize("kind", PROTECTED)
def test_58_what_must_be_protected_cannot_be_moved_or_dropped(image, kind):
    front, entries = areas(image)
    moved = [(is_protected and entry_kind != kind, entry_kind, value) for is_protected, entry_kind, value in entries]
    with pytest.raises(MalformedError, match="not covered by the hash"):
        check(join(front, moved))
    with pytest.raises(DigestMismatchError):
        check(join(front, without(entries, kind)))


def test_a_second_security_counter_outside_the_hash_is_refused(image):
    front, entries = areas(image)
    with pytest.raises(MalformedError):
        check(join(front, [*entries, (False, TlvType.SECURITY_COUNTER, bytes([255] * 4))]))


@pytest.mark.parametrize("kind", [TlvType.SHA512, TlvType.ED25519, TlvType.KEYHASH, TlvType.SIG_PURE])
def test_nothing_is_said_twice(image, kind):
    front, entries = areas(image)
    with pytest.raises(MalformedError, match="twice"):
        check(join(front, [*entries, (False, kind, bytes(64)), (False, kind, bytes(64))]))


def test_58_dependencies_cannot_be_lowered(image):
    front, entries = areas(image)
    lowered = [
        (is_protected, kind, struct.pack("<B3xBBHI", 1, 0, 0, 0, 0) if kind == TlvType.DEPENDENCY else value)
        for is_protected, kind, value in entries
    ]
    with pytest.raises(DigestMismatchError):
        check(join(front, lowered))


@pytest.mark.parametrize("tail", [b"junk", b"\0" * 64])
def test_58_nothing_follows_the_last_entry(image, tail):
    with pytest.raises(MalformedError, match="goes on after its last TLV"):
        check(image + tail)


def test_unknown_entries_are_refused_and_a_vendors_own_are_kept(image):
    front, entries = areas(image)
    with pytest.raises(MalformedError, match="not known"):
        check(join(front, [*entries, (False, 0x7F, b"x")]))
    found = check(join(front, [*entries, (False, 0xA1, b"note")]))
    assert mcuboot.name_of(found.tlvs[-1]) == "0x00a1"
    assert mcuboot.name_of(found.tlvs[0]) == "security-counter"


def test_too_many_entries_and_too_long_an_image_are_refused(image):
    front, entries = areas(image)
    with pytest.raises(TooLargeError, match="too many"):
        check(join(front, [*entries, *[(False, 0xA1, b"")] * 64]))
    with pytest.raises(TooLargeError):
        mcuboot.read_image(BytesReader(image), layout.MAX_IMAGE_LENGTH_BYTES + 1)


@given(cut=st.integers(0, len(APPLICATION) + 1500))
@settings(max_examples=60, deadline=None)
def test_58_a_cut_image_is_refused(cut):
    whole = IMAGE
    with pytest.raises(FirmamentError):
        check(whole[: min(cut, len(whole) - 1)])


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_is_found_anywhere(data):
    """Wherever it falls: in the header, the body, an entry's head or its value."""
    position = data.draw(st.integers(0, len(IMAGE) * 8 - 1))
    flipped = bytearray(IMAGE)
    flipped[position // 8] ^= 1 << (position % 8)
    with pytest.raises(FirmamentError):
        check(bytes(flipped))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_an_image_or_our_error(data):
    head = struct.pack("<IIHHIIBBHI4x", layout.MAGIC, 0, 32, 0, 16, 0, 1, 0, 0, 0)
    for candidate in (data, head + bytes(16) + data):
        with contextlib.suppress(FirmamentError):
            mcuboot.read_image(BytesReader(candidate), len(candidate))


# --- encryption ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [128, 256])
@pytest.mark.parametrize("name", WRAPS)
def test_58_an_image_spliced_for_one_device_opens_on_no_other(name, bits):
    """The author encrypts and signs once; the entry of the key is all that differs between devices."""
    _, first = WRAPS[name]
    recipe = replace(RECIPE, encrypt_for=public_pem(first), encrypt_key_bits=bits)
    common = make(name, recipe)
    source = BytesReader(common)
    found = mcuboot.read_image(source, len(common))
    assert found.is_encrypted
    assert APPLICATION[:256] not in common
    content_key = mcuboot.unwrap_content_key(found, source, first)
    check(common, name, content_key)

    second = MAKERS[name]()
    splice = mcuboot.rewrap(found, source, content_key, second.public_key())
    theirs = common[: splice.offset] + splice.data + common[splice.offset + len(splice.data) :]
    assert len(theirs) == len(common)
    their_source = BytesReader(theirs)
    their_image = mcuboot.read_image(their_source, len(theirs))
    assert mcuboot.unwrap_content_key(their_image, their_source, second) == content_key
    check(theirs, name, content_key)
    with pytest.raises(KeyWrapError):
        mcuboot.unwrap_content_key(their_image, their_source, first)


def test_an_encrypted_image_is_not_verified_without_its_key():
    recipe = replace(RECIPE, encrypt_for=public_pem(WRAPS["ed25519"][1]))
    common = make(recipe=recipe)
    with pytest.raises(MalformedError, match="content key"):
        check(common)
    with pytest.raises(MalformedError):
        check(common, content_key=bytes(15))
    with pytest.raises(DigestMismatchError):
        check(common, content_key=bytes(16))


def test_a_wrap_needs_a_key_that_fits():
    recipe = replace(RECIPE, encrypt_for=public_pem(WRAPS["ed25519"][1]))
    common = make(recipe=recipe)
    source, found = BytesReader(common), mcuboot.read_image(BytesReader(common), len(common))
    with pytest.raises(KeyWrapError):
        mcuboot.rewrap(found, source, bytes(16), WRAPS["ecdsa-p256"][1].public_key())
    with pytest.raises(KeyWrapError):
        mcuboot.rewrap(found, source, bytes(32), WRAPS["ed25519"][1].public_key())
    with pytest.raises(KeyWrapError):
        mcuboot.unwrap_content_key(found, source, WRAPS["ecdsa-p256"][1])
    plain = IMAGE
    with pytest.raises(MalformedError, match="not encrypted"):
        mcuboot.unwrap_content_key(
            mcuboot.read_image(BytesReader(plain), len(plain)), BytesReader(plain), WRAPS["ed25519"][1]
        )


def test_flags_and_key_must_agree():
    front, entries = areas(IMAGE)
    flagged = bytearray(front)
    struct.pack_into("<I", flagged, 16, 0x4)
    with pytest.raises(MalformedError, match="carries no key"):
        check(join(bytes(flagged), entries))
    with pytest.raises(MalformedError, match="says it is not encrypted"):
        check(join(front, [*entries, (False, TlvType.ENC_X25519, bytes(80))]))
    struct.pack_into("<I", flagged, 16, 0x40000000)
    with pytest.raises(MalformedError, match="flags"):
        check(join(bytes(flagged), entries))


# --- making ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ed25519", "ecdsa-p256", "rsa-2048"])
def test_a_key_that_is_elsewhere_signs_a_digest(name):
    """The private key is never on the bench: its holder gets 32 or 64 bytes and gives a signature back."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, utils

    public, key = public_pem(KEYS[name]), KEYS[name]
    digest = mcuboot_build.vector(APPLICATION, RECIPE, public_key=public)
    if name == "ed25519":
        signature = key.sign(digest)
    elif name == "ecdsa-p256":
        signature = key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    else:
        signature = key.sign(digest, padding.PSS(padding.MGF1(hashes.SHA256()), 32), utils.Prehashed(hashes.SHA256()))
    image = mcuboot_build.assemble(APPLICATION, RECIPE, mcuboot_build.Signed(signature, public))
    check(image, name)
    with pytest.raises(SignatureError):
        mcuboot_build.assemble(APPLICATION + b"x", RECIPE, mcuboot_build.Signed(signature, public))


def test_an_encrypted_image_is_signed_elsewhere_too():
    public, key = public_pem(KEYS["ed25519"]), KEYS["ed25519"]
    recipe = replace(RECIPE, encrypt_for=public_pem(WRAPS["ed25519"][1]))
    signature = key.sign(mcuboot_build.vector(APPLICATION, recipe, public_key=public))
    image = mcuboot_build.assemble(APPLICATION, recipe, mcuboot_build.Signed(signature, public))
    source = BytesReader(image)
    content_key = mcuboot.unwrap_content_key(mcuboot.read_image(source, len(image)), source, WRAPS["ed25519"][1])
    check(image, content_key=content_key)


def test_signature_files_are_read_in_both_forms():
    assert mcuboot_build.read_signature(b"AAECAw==\n") == bytes([0, 1, 2, 3])
    assert mcuboot_build.read_signature(b"\xff\x00raw") == b"\xff\x00raw"


BAD_RECIPES = {
    "version": {"image_version": "1.2"},
    "counter": {"security_counter": 2**32},
    "header": {"header_length_bytes": 16},
    "dependency": {"dependencies": ("one:1.0.0",)},
    "slot": {"slot_length_bytes": 1024},
}


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_a_recipe_that_cannot_be_made_is_refused(name):
    with pytest.raises(MalformedError):
        make(recipe=replace(RECIPE, **BAD_RECIPES[name]))


def test_an_empty_application_is_refused():
    with pytest.raises(MalformedError):
        make(application=b"")


def test_keys_that_mcuboot_cannot_use_are_refused():
    with pytest.raises(KeyFileError):
        mcuboot.load_public_key(b"nonsense")
    with pytest.raises(KeyFileError):
        mcuboot.load_public_key(public_pem(rsa.generate_private_key(65537, 4096)))
    with pytest.raises(KeyFileError):
        mcuboot_build.make(APPLICATION, RECIPE, key=b"nonsense")


def test_an_encrypted_key_asks_for_its_passphrase():
    key = private_pem(KEYS["ed25519"], b"right")
    check(mcuboot_build.make(APPLICATION, RECIPE, key=key, ask=lambda: b"right"))
    with pytest.raises(PassphraseError):
        mcuboot_build.make(APPLICATION, RECIPE, key=key, ask=lambda: b"wrong")
    with pytest.raises(PassphraseError):
        mcuboot_build.make(APPLICATION, RECIPE, key=key)


IMAGE = make()
