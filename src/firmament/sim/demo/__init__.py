"""The demonstration: the whole main job with real commands, real processes and real input."""
