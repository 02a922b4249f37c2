"""`KlingSession` for programs without asyncio: the same names, without `await`.

```python
from kling_async.blocking import KlingSession

with KlingSession() as kling:
    prediction = kling.generate(prompt="She turns and smiles", image=Path("face.png"))
    kling.save(prediction, "out/")
```

A session has an event loop of its own in a thread. Its methods may be called from any number of threads, and block the
calling one only. Everything else of the package (`Job`, `Outcome`, the errors, ...) is used as it is.
"""

from __future__ import annotations

from ._generated import Batch, KlingSession

__all__ = ["Batch", "KlingSession"]
