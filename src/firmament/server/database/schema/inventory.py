"""Inventory: attributes, tags, groups, sites, gateways, saved filters."""

from __future__ import annotations
