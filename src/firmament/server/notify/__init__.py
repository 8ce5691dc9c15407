"""Notifications: one per change of state, for people, until somebody says they have seen it."""
