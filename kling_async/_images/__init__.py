"""Images on their way to the service: checks, conversion, uploads."""
