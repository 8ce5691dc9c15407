"""Payload keys: content keys of sealed payloads, at rest encrypted; devices' wrapping keys."""

from __future__ import annotations
