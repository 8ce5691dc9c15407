"""Pages over the operator API; holds no rule (floor 5)."""
