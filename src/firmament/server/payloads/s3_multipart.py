"""Multipart uploads that were begun and never finished: listing and aborting them.

Their parts are invisible but paid for. `obstore` aborts what fails while it runs; what a killed
server began stays until somebody asks the store for it, which `obstore` cannot.
"""

from __future__ import annotations

import html
import re
import ssl
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import urllib3

from firmament.errors import OverloadedError, SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from firmament.core.clock import Clock
    from firmament.server.payloads.s3_account import S3Account

LIFE_S: Final = 300
TIMEOUT: Final = urllib3.Timeout(connect=3, read=30)
MAX_PAGE_LENGTH_BYTES: Final = 4 * 1024 * 1024
# S3 lists at most 1,000 uploads a page, each below 2 KiB.
MAX_PAGES: Final = 1000
AWAY_RETRY_S: Final = 5
_UPLOAD: Final = re.compile("<Upload>(.*?)</Upload>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """One upload that is not finished."""

    key: str
    upload_id: str
    begun_at: datetime


class Multiparts:
    """Asks a bucket about its unfinished uploads."""

    def __init__(self, account: S3Account, clock: Clock) -> None:
        self._account = account
        self._clock = clock
        context = ssl.create_default_context(cadata=account.ca_pem or None)
        self._pool = urllib3.PoolManager(timeout=TIMEOUT, retries=False, ssl_context=context)

    def list(self, prefix: str) -> Iterator[OpenUpload]:
        """Yield every unfinished upload below a prefix."""
        marker: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            page = self._ask("GET", "", {"uploads": "", "prefix": prefix, **marker})
            for match in _UPLOAD.finditer(page):
                yield OpenUpload(
                    _text(match[1], "Key"),
                    _text(match[1], "UploadId"),
                    datetime.fromisoformat(_text(match[1], "Initiated")).astimezone(UTC),
                )
            if _text(page, "IsTruncated") != "true":
                return
            marker = {
                "key-marker": _text(page, "NextKeyMarker"),
                "upload-id-marker": _text(page, "NextUploadIdMarker"),
            }

    def abort(self, upload: OpenUpload) -> None:
        """Let the store forget an upload and its parts; one that is gone is fine."""
        self._ask("DELETE", upload.key, {"uploadId": upload.upload_id})

    def _ask(self, method: str, key: str, query: Mapping[str, str]) -> str:
        url = self._account.signed_url(method, key, query, self._clock.now(), life_s=LIFE_S)
        try:
            answer = self._pool.request(method, url, preload_content=False, redirect=False)
            with answer:
                body = answer.read(MAX_PAGE_LENGTH_BYTES).decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise OverloadedError("The object store cannot be reached", retry_after_s=AWAY_RETRY_S) from error
        if answer.status in {401, 403}:
            raise SettingError("The object store refuses the given keys", bucket=self._account.bucket)
        if answer.status not in {200, 204, 404}:
            raise OverloadedError(
                "The object store does not answer as it should", status=answer.status, retry_after_s=AWAY_RETRY_S
            )
        return body


def _text(xml: str, tag: str) -> str:
    # S3's answers are flat lists of elements without attributes; a parser for all of XML would be the larger risk.
    match = re.search(f"<{tag}>([^<]*)</{tag}>", xml)
    text = html.unescape(match[1]) if match is not None else ""
    return urllib.parse.unquote(text) if tag.endswith("KeyMarker") and "EncodingType" in xml else text
