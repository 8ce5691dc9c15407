"""The URL paths of the device API, version 1. They are for ever (house rule 12)."""

from __future__ import annotations

from typing import Final

ENROL: Final = "/v1/enrol"
"""POST EnrolRequest -> EnrolReply; TLS without client certificate, one-time token."""
POLL: Final = "/v1/poll"
"""POST PollRequest -> PollReply; GET with If-None-Match -> 304 while nothing changed; mTLS."""
REPORT: Final = "/v1/report"
"""POST ReportBatch -> ReportReply; mTLS, and each report is signed."""
CONSENT: Final = "/v1/consent"
"""POST ConsentBatch -> ConsentReply; mTLS, and each event is signed."""
DIRECTOR_METADATA: Final = "/v1/director/"
"""GET ``<N>.root.json``: the director's root chain; everything else comes inside a poll."""
IMAGE_METADATA: Final = "/v1/image/metadata/"
"""GET TUF metadata of the image repository (static; any CDN or file server can serve it)."""
IMAGE_TARGETS: Final = "/v1/image/targets/"
"""GET payloads by hash-prefixed TUF target path; Range, ETag, HEAD, immutable."""
