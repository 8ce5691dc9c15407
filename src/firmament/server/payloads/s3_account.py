"""Where a bucket is and who may use it: the settings `s3_*`, checked, and requests signed with its keys.

The signature is version 4 in the query, as S3 documents it ("Authenticating Requests: Using Query
Parameters"); `obstore` signs what it asks itself, this is for the requests that it does not know.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from firmament.durable import read_file
from firmament.errors import FirmamentError, SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from firmament.durable import Disk
    from firmament.server.settings import ServerSettings

MAX_KEY_LENGTH_BYTES: Final = 1024
MAX_CA_LENGTH_BYTES: Final = 1024 * 1024
ADDRESSING: Final = ("path", "virtual")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,100}/){0,8}")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class S3Account:
    """A bucket and the keys to it; never shown whole."""

    endpoint: str
    """`https://host[:port]`, without a path."""
    bucket: str
    prefix: str
    region: str
    is_virtual: bool
    """Whether the bucket is part of the host's name."""
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    ca_pem: str = field(default="", repr=False)

    @property
    def base_url(self) -> str:
        """What a key is appended to after a slash, but for the bucket in the path."""
        if not self.is_virtual:
            return self.endpoint
        scheme, _, host = self.endpoint.partition("://")
        return f"{scheme}://{self.bucket}.{host}"

    def signed_url(self, method: str, key: str, query: Mapping[str, str], now: datetime, *, life_s: int) -> str:
        """Return an address that allows one request; `key` is empty for the bucket itself."""
        url = urllib.parse.urlsplit(self.base_url)
        path = "/" + urllib.parse.quote(key if self.is_virtual else f"{self.bucket}/{key}".rstrip("/"))
        moment = f"{now:%Y%m%dT%H%M%SZ}"
        place = f"{moment[:8]}/{self.region}/s3/aws4_request"
        text = _encoded(
            {
                **query,
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Credential": f"{self.access_key}/{place}",
                "X-Amz-Date": moment,
                "X-Amz-Expires": str(life_s),
                "X-Amz-SignedHeaders": "host",
            }
        )
        request = f"{method}\n{path}\n{text}\nhost:{url.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
        what = f"AWS4-HMAC-SHA256\n{moment}\n{place}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key_bytes = f"AWS4{self.secret_key}".encode()
        for step in (*place.split("/"), what):
            key_bytes = hmac.digest(key_bytes, step.encode(), "sha256")
        return f"{self.base_url}{path}?{text}&X-Amz-Signature={key_bytes.hex()}"


def _encoded(query: Mapping[str, str]) -> str:
    pairs = sorted((urllib.parse.quote(name, safe=""), urllib.parse.quote(query[name], safe="")) for name in query)
    return "&".join(f"{name}={value}" for name, value in pairs)


def read_account(disk: Disk, directory: Path, settings: ServerSettings) -> S3Account:
    """Return the account that the settings name; raises SettingError for any that cannot be used."""
    if not _BUCKET.fullmatch(settings.s3_bucket):
        raise SettingError("This is not the name of a bucket", setting="s3_bucket", found=settings.s3_bucket)
    if not _PREFIX.fullmatch(settings.s3_prefix):
        raise SettingError("A prefix is written as a/b/", setting="s3_prefix", found=settings.s3_prefix)
    endpoint = urllib.parse.urlsplit(settings.s3_endpoint)
    if endpoint.scheme not in {"https", "http"} or not endpoint.netloc or endpoint.path.strip("/") or endpoint.query:
        raise SettingError(
            "An endpoint is written as https://host:port", setting="s3_endpoint", found=settings.s3_endpoint
        )
    if endpoint.username is not None:
        raise SettingError("Keys do not belong into the endpoint", setting="s3_endpoint")
    if settings.s3_addressing not in ADDRESSING:
        raise SettingError(
            "s3_addressing is not one of the known words", found=settings.s3_addressing, known=" ".join(ADDRESSING)
        )
    ca = directory / settings.s3_ca
    return S3Account(
        endpoint=f"{endpoint.scheme}://{endpoint.netloc}",
        bucket=settings.s3_bucket,
        prefix=settings.s3_prefix,
        region=settings.s3_region,
        is_virtual=settings.s3_addressing == "virtual",
        access_key=_key(disk, directory, "s3_access_key_file", settings.s3_access_key_file),
        secret_key=_key(disk, directory, "s3_secret_key_file", settings.s3_secret_key_file),
        ca_pem=_read(disk, ca, "s3_ca", MAX_CA_LENGTH_BYTES) if settings.s3_ca else "",
    )


def _key(disk: Disk, directory: Path, setting: str, name: str) -> str:
    if not name:
        raise SettingError("An object store needs a file with each key", setting=setting)
    text = _read(disk, directory / name, setting, MAX_KEY_LENGTH_BYTES).strip()
    if not _KEY.fullmatch(text):
        raise SettingError("This file does not hold one key", setting=setting, path=directory / name)
    return text


def _read(disk: Disk, path: Path, setting: str, limit_bytes: int) -> str:
    try:
        return read_file(disk, path, limit_bytes=limit_bytes).decode()
    except (FirmamentError, OSError, UnicodeDecodeError) as error:
        raise SettingError("A file that a setting names cannot be read", setting=setting, path=path) from error
