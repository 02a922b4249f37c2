"""`kling-async estimate`: what a manifest would cost. Nothing is sent but questions, and those only if asked for."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import anyio
import attrs
from rich.text import Text

from kling_async._session.session import KlingSession
from kling_async.errors import ApiError
from kling_async.manifest import Kind

from .interrupts import Exit
from .output import console
from .plan import Plan, tell_plan
from .progress import counted
from .sources import Source, checked, tell_warnings

if TYPE_CHECKING:
    from kling_async._core.account import ServicePrice
    from kling_async._core.job import Job
    from kling_async.manifest import Manifest


@attrs.frozen(kw_only=True)
class EstimateOptions:
    """What the user asked for; see the help of the command."""

    source: Source
    provider: str = "wavespeed"
    ask: bool = False
    as_json: bool = False


def estimate(options: EstimateOptions) -> Exit:
    """Check, price, tell."""
    manifest = checked(options.source, options.provider, as_json=options.as_json)
    if manifest is None:
        return Exit.BAD_INPUT
    asked = None
    if options.ask:
        session = KlingSession(provider=options.provider)
        asked = anyio.run(_asked, session, manifest)
    plan = Plan.of(manifest.kinds, options.provider, asked)
    if options.as_json:
        sys.stdout.write(json.dumps(_shown(manifest, plan), indent=2) + "\n")
        return Exit.WELL
    to = console()
    to.print(Text.assemble((counted(len(manifest), "job"), "bold"), f" from {manifest.name} at {options.provider}"))
    tell_plan(to, plan, asked=options.ask)
    tell_warnings(to, manifest)
    return Exit.WELL


async def _asked(session: KlingSession, manifest: Manifest) -> dict[Kind, ServicePrice | None]:
    """What the service asks for each kind; None where it knows no price.

    Raises:
        UnsupportedError: The provider tells no prices.
        ApiError: It concerns the whole account.
        TransportError: The service could not be asked.
    """
    examples: dict[Kind, Job] = {}
    async for _, job in manifest:
        examples.setdefault(Kind(job.model, job.duration, bool(job.sound)), job)
        if len(examples) == len(manifest.kinds):
            break
    asked: dict[Kind, ServicePrice | None] = {}
    async with session as kling:
        for kind, job in examples.items():
            try:
                asked[kind] = await kling.price(job)
            except ApiError as error:
                if error.account_wide:
                    raise
                asked[kind] = None
    return asked


def _shown(manifest: Manifest, plan: Plan) -> dict[str, object]:
    return {
        "manifest": manifest.name,
        "provider": plan.provider,
        "jobs": plan.jobs,
        "kinds": [
            {
                "model": line.kind.model,
                "duration": line.kind.duration,
                "sound": line.kind.sound,
                "jobs": line.jobs,
                "list_usd": None if line.price.usd is None else float(line.price.usd),
                "certainty": line.price.certainty.value,
                "account_usd": None if line.asked_usd is None else float(line.asked_usd),
            }
            for line in plan.lines
        ],
        "list_usd": float(plan.usd),
        "unpriced_jobs": plan.unpriced,
        "account_usd": None if plan.asked_usd is None else float(plan.asked_usd),
        "warnings": [str(warning) for warning in manifest.warnings],
    }
