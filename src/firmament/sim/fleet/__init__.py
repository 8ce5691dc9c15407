"""A fleet of virtual devices on the real protocol and the real rollout engine, repeatable by its seed."""
