"""The two commands; the only place that prints (floor 6)."""
