"""Inside other frameworks, each in a module of its own that is loaded by naming it: `fastapi`, `opentelemetry`, ...

Each needs its own extra.
"""
