"""Watching: find out, for all predictions of a session at once, which have ended."""
