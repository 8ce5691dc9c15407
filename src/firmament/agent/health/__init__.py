"""Is the image that was just started healthy: the port, the checks, and the examination."""
