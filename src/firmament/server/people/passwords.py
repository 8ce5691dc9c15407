"""Passwords: argon2id with the library's defaults (RFC 9106, low-memory profile), in a thread.

One hash costs about 0.2 s of CPU (stack.md §1.3), so it never runs in the event loop and the
number of people asking at once is bounded by the login rate limit.
"""

from __future__ import annotations

import functools
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from firmament.errors import MalformedError

MIN_LENGTH: Final = 12
# NIST SP 800-63B asks for 8 at least and 15 without a second factor; 12 is common ground for operators.
MAX_LENGTH: Final = 256
_HASHER: Final = PasswordHasher()
NO_HASH: Final = ""
"""Stands for the hash of an unknown name; verifying it takes as long as any."""


@functools.cache
def _dummy_hash() -> str:
    return _HASHER.hash("nobody has this password")


def hash_password(password: str) -> str:
    """Return the argon2id string; raises MalformedError for one that is too short or too long."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise MalformedError("The password's length is out of range", minimum=MIN_LENGTH, maximum=MAX_LENGTH)
    return _HASHER.hash(password)


def verify_password(hashed: str, password: str) -> bool:
    """Whether this is the password; never raises."""
    if len(password) > MAX_LENGTH:
        return False
    try:
        if hashed == NO_HASH:
            # So that a name's existence cannot be told by the time it takes.
            _HASHER.verify(_dummy_hash(), password)
            return False
        return _HASHER.verify(hashed, password)
    except (Argon2Error, InvalidHashError):
        return False
