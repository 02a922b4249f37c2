"""Polling and webhooks: find out which predictions of a session have ended."""
