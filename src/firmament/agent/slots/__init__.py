"""Where images live: the `Slot` port, its implementations, and the table of slot kinds."""
