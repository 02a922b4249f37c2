"""Example applications: `python -m kling_async.examples.studio --emulator`."""
