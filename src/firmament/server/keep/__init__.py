"""Keeping a server: copies of its database, encrypted backups, moves between engines."""
