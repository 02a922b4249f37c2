"""Applications to read and to begin with: `python -m kling_async.examples.studio --emulator`."""
