"""An encrypted image for a microcontroller on its way through server, cache and the device that carries it (case 58)."""

import pytest
from attack import payloads
from attack.payloads import publish, sealed_whole
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from support.pem import private_pem, public_pem

from firmament.errors import KeyWrapError, MalformedError, SignatureError
from firmament.payload import mcuboot
from firmament.payload.readers import BytesReader
from firmament.release import mcuboot_build

APPLICATION = b"the motor's own firmware" * 500


def content_key_of(image, key):
    source = BytesReader(image)
    return mcuboot.unwrap_content_key(mcuboot.read_image(source, len(image)), source, key)


def test_58_a_carried_image_opens_on_its_own_microcontroller_only(stage, monkeypatch):
    """Whoever holds server and CDN, or listens on the bus, or has another unit, cannot read a microcontroller's image."""
    boot, wrap = ed25519.Ed25519PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    mine, others = (x25519.X25519PrivateKey.generate() for _ in range(2))
    recipe = mcuboot_build.Recipe("1.2.3", 7, encrypt_for=public_pem(wrap))
    common = mcuboot_build.make(APPLICATION, recipe, key=private_pem(boot))
    files = {"mcu-image.bin": common, "mcu-wrap.pem": private_pem(wrap), "mcu-boot.pub.pem": public_pem(boot)}
    for name, data in files.items():
        monkeypatch.setitem(payloads.EXTRA, name, data)
    publish(stage, sealed_whole(), confidential=True)
    held = [*stage.world.image.files.values(), *stage.world.image.blobs.values()]
    assert not any(data in blob or APPLICATION[:64] in blob for data in files.values() for blob in held)
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code == 0, ran.err

    unit, made = stage.victim.directory / "unit.pub.pem", stage.victim.directory / "unit.bin"
    unit.write_bytes(public_pem(mine))
    current = stage.victim.app / "current"

    def rewrap(image):
        keys = ("--for", unit, "--key", current / "mcu-wrap.pem", "--boot-key", current / "mcu-boot.pub.pem")
        return stage.victim.run(*map(str, ("rewrap", image, made, *keys)))

    ran = rewrap(current / "mcu-image.bin")
    assert ran.exit_code == 0, ran.err
    image = made.read_bytes()
    assert APPLICATION[:64] not in image, "on the bus it is encrypted"
    content_key = content_key_of(image, mine)
    source = BytesReader(image)
    found = mcuboot.read_image(source, len(image))
    mcuboot.verify(found, source, mcuboot.load_public_key(public_pem(boot)), content_key=content_key)
    for key in (others, wrap):
        with pytest.raises(KeyWrapError):
            content_key_of(image, key)

    made.unlink()
    start = found.header_length_bytes + 8
    forged = {
        SignatureError.code: mcuboot_build.make(
            APPLICATION, recipe, key=private_pem(ed25519.Ed25519PrivateKey.generate())
        ),
        MalformedError.code: common + b"\0",
        "trust/digest-mismatch": common[:start] + bytes([common[start] ^ 1]) + common[start + 1 :],
    }
    for code, data in forged.items():
        (stage.victim.directory / "forged.bin").write_bytes(data)
        assert rewrap(stage.victim.directory / "forged.bin").code == code
        assert not made.exists()
    stage.told.append({"code": f"{KeyWrapError.code}, " + ", ".join(forged), "asked": list(stage.server.asked)})
