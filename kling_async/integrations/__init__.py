"""Integrations with other frameworks: `fastapi`, `opentelemetry`, `procrastinate`. Each needs its own extra."""
