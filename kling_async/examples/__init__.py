"""Programs to start from: `script`, `folder`, `spreadsheet`, `film`, `webhooks`, `studio`, and the folder `pool`.

`python -m kling_async.examples.studio --emulator` needs no key.
"""
