"""Which devices there are, how they got their identity, what they run."""
