"""The paid request: submit once, settle what is in doubt."""
