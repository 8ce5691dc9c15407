"""Rollouts: who gets a release, how carefully, and what happens when it goes wrong."""
