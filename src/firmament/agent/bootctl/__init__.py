"""How the next start is chosen: the `BootControl` port, its implementations, and their table."""
