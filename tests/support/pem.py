"""Keys as the bytes of a PEM file."""

from cryptography.hazmat.primitives import serialization


def private_pem(key, passphrase=None):
    """PKCS#8, encrypted when a passphrase is given."""
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def public_pem(key):
    """The public half."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
