"""A crowd of virtual devices that speak the device API to a real server over HTTPS."""
