"""Images of jobs: check, convert, upload."""
