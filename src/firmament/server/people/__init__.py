"""Who operates the fleet, with which role, and the tokens they use."""
