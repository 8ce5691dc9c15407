"""Machine tokens: 256 random bits, shown once, stored as SHA-256.

A token of high entropy needs no slow hash (stack.md §1.3); looking one up by its hash is
constant-time enough: an attacker cannot choose the hash.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

OPERATOR_PREFIX: Final = "fmo_"
SESSION_PREFIX: Final = "fms_"
ENROLMENT_PREFIX: Final = "fme_"
"""Prefixes let a secret scanner recognise a leaked token, and a person tell the two apart."""


def make_token(prefix: str) -> tuple[str, bytes]:
    """Return a new token and its hash."""
    token = prefix + secrets.token_urlsafe(32)
    return token, hash_token(token)


def hash_token(token: str) -> bytes:
    """Return what is stored."""
    return hashlib.sha256(token.encode()).digest()
