"""The one bound of waits in real time."""

from __future__ import annotations

PATIENCE_S = 120.0
"""Seconds after which a wait for an event counts as a hang. No test measures with it: a slow machine stays below."""
