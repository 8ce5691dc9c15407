"""Content-addressed bytes that operators upload and publishes refer to."""
