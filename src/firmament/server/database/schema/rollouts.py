"""Rollouts: waves, targets, counters, decisions, budgets."""

from __future__ import annotations
