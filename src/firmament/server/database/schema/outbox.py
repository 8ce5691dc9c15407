"""Out: webhooks, notifications and their deliveries."""

from __future__ import annotations
