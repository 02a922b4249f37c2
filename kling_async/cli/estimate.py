"""`kling-async estimate`: price a manifest. The service is contacted only for `--ask`, and nothing is spent."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import anyio
from rich.text import Text

from kling_async._session.session import KlingSession
from kling_async.errors import ApiError

from .exits import Exit
from .output import make_console, plural, print_text
from .plan import Plan, print_plan
from .sources import at_this_machine, print_warnings, read_source

if TYPE_CHECKING:
    from kling_async._core.account import ServicePrice
    from kling_async._core.job import Job
    from kling_async._core.prices import Kind
    from kling_async.manifest import Manifest

    from .options import EstimateOptions


def estimate(options: EstimateOptions) -> Exit:
    """Check and price the manifest, and print the prices."""
    manifest = read_source(options, options.provider, as_json=options.as_json)
    if manifest is None:
        return Exit.BAD_INPUT
    quotes = None
    if options.ask:
        session = KlingSession(provider=options.provider)
        quotes = anyio.run(_quotes, session, manifest)
    plan = Plan.of(manifest.kinds, options.provider, quotes, models=manifest.models)
    if options.as_json:
        sys.stdout.write(json.dumps(_as_json(manifest, plan), indent=2) + "\n")
        return Exit.WELL
    console = make_console()
    jobs = plural(len(manifest), "job")
    print_text(console, Text.assemble((jobs, "bold"), f" from {manifest.name} at {options.provider}"))
    print_plan(console, plan, quoted=options.ask)
    print_warnings(console, manifest, options.provider, local=at_this_machine(options.provider))
    return Exit.WELL


async def _quotes(session: KlingSession, manifest: Manifest) -> dict[Kind, ServicePrice | None]:
    """Return the service's price for one job of each kind; None if it has no price.

    Raises:
        UnsupportedError: The provider quotes no prices.
        ApiError: The error concerns the whole account.
        TransportError: The service could not be reached.
    """
    examples: dict[Kind, Job] = {}
    async for _, job in manifest:
        examples.setdefault(job.kind, job)
        if len(examples) == len(manifest.kinds):
            break
    quotes: dict[Kind, ServicePrice | None] = {}
    async with session as kling:
        for kind, job in examples.items():
            try:
                quotes[kind] = await kling.price(job)
            except ApiError as error:
                if error.account_wide:
                    raise
                quotes[kind] = None
    return quotes


def _as_json(manifest: Manifest, plan: Plan) -> dict[str, object]:
    return {
        "manifest": manifest.name,
        "provider": plan.provider,
        "jobs": plan.jobs,
        "kinds": [
            {
                "model": line.kind.model,
                "duration": line.kind.duration,
                "sound": bool(line.kind.sound),
                "resolution": line.kind.resolution or None,
                "jobs": line.jobs,
                "list_usd": None if line.price.usd is None else float(line.price.usd),
                "certainty": line.price.certainty.value,
                "account_usd": None if line.quoted_usd is None else float(line.quoted_usd),
            }
            for line in plan.lines
        ],
        "list_usd": float(plan.usd),
        "unpriced_jobs": plan.unpriced,
        "account_usd": None if plan.quoted_usd is None else float(plan.quoted_usd),
        "warnings": [
            *(
                f"{plural(rows, 'job')}: {caution}"
                for caution, rows in manifest.cautions(plan.provider, local=at_this_machine(plan.provider)).items()
            ),
            *(str(warning) for warning in manifest.warnings),
        ],
    }
