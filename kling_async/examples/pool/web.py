"""The web process: enqueues jobs into the shared ledger, and answers for any of them. It needs no key of the service.

`KLING_LEDGER=postgresql://... uvicorn kling_async.examples.pool.web:app`
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from fastapi import Body, FastAPI, HTTPException, Request

from kling_async import Job, enqueue
from kling_async.integrations.fastapi import add_error_handlers
from kling_async.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BATCH = "web"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the ledger for the time of the process."""
    app.state.ledger = ledger = PostgresLedger(os.environ["KLING_LEDGER"])
    await ledger.open()
    try:
        yield
    finally:
        await ledger.aclose()


app = FastAPI(title="Kling", lifespan=lifespan)
add_error_handlers(app)  # an InvalidJobError becomes a 422 with field paths


@app.post("/videos", status_code=202)
async def make(prompt: Annotated[str, Body()], image: Annotated[str, Body()], request: Request) -> dict[str, str]:
    """Enqueue a job; the workers start it when the account permits."""
    key = uuid4().hex
    await enqueue(request.app.state.ledger, {key: Job(prompt=prompt, image=image)}, batch=BATCH)
    return {"key": key}


@app.get("/videos/{key}")
async def look(key: str, request: Request) -> dict[str, Any]:
    """Return where a job stands, and the URL of its video."""
    found = await request.app.state.ledger.find(BATCH, key)
    if found is None:
        raise HTTPException(404)
    row, _ = found
    return {"key": key, "state": row.state.label, "output": row.output, "error": row.error}
