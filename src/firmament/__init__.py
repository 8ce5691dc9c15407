"""Firmament: over-the-air firmware updates that end with the new image proven healthy, or the old one.

Public API: `firmament.core`, `firmament.protocol`, `firmament.trust`, `firmament.release` and
`firmament.agent`, as far as their `__all__` says. Everything else may change.
"""

__all__ = ("__version__",)

__version__ = "0.1.0"
