"""The audit chain over domain events: sealing, checkpoints, export, search."""
