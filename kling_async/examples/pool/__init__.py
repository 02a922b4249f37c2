"""Example: a web process that enqueues, and workers that make the videos, over one PostgreSQL. See compose.yaml."""
