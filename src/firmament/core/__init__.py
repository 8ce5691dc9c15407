"""Values and rules: no I/O, no clock, nothing from third parties (floor 1)."""
