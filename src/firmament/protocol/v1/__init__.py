"""Version 1 of the device protocol: paths, messages and signed envelopes (docs/protocol/device-api.md)."""
