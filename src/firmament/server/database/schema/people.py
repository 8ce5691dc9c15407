"""People: tenants, second factors, outside identities, consent policies and answers."""

from __future__ import annotations
