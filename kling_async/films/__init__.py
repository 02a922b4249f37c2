"""Frames of videos, and films made of clips."""
