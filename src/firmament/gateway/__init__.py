"""Speaks for devices that cannot (floor 4)."""
