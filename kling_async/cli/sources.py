"""Read the jobs that `run`, `enqueue` and `estimate` are given."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import anyio
import attrs
from rich.text import Text

from kling_async._core.catalogue import Model, find_model
from kling_async._core.prices import Certainty
from kling_async._core.text import one_line
from kling_async._session.options import provider_of
from kling_async._session.session import KlingSession
from kling_async.errors import ConfigurationError, ManifestError, UnsupportedError, group_problems
from kling_async.manifest import Manifest, read_manifest
from kling_async.providers._v3 import is_local

from .choices import LevelChoice, ProfileChoice
from .output import plural, print_text, problem_line
from .plan import check_supported
from .results import problem_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from kling_async._core.job import JobFields
    from kling_async.emulator import Emulator

    from .options import SourceOptions

_MAX_WARNINGS_SHOWN: Final = 10
_MAX_COLUMNS_SHOWN: Final = 12


def read_source(options: SourceOptions, provider: str, *, as_json: bool, rehearsal: bool = False) -> Manifest | None:
    """Read and check a manifest.

    Args:
        options: The manifest, and defaults for its rows.
        provider: Name of the provider, which must have every model.
        as_json: Write problems to stdout as JSON lines and return None instead of raising `ManifestError`.
        rehearsal: Ask an emulator in this process, and not the service, for models that the catalogue lacks.

    Raises:
        ManifestError: Rows are wrong.
        UnsupportedError: The provider lacks a model, or has no list of models.
        ApiError: The service refused to list its models.
        TransportError: The service could not be reached.
    """
    columns = _columns(options.columns or ())
    defaults: JobFields = {}
    if options.prompt is not None:
        defaults["prompt"] = options.prompt
    if options.model is not None:
        defaults["model"] = options.model
    if options.duration is not None:
        defaults["duration"] = options.duration
    models = anyio.run(_emulated_models if rehearsal else _service_models, provider) if options.from_service else ()
    try:
        manifest = read_manifest(
            options.manifest,
            root=options.root,
            fit=options.fit,
            models=models,
            columns=columns,
            recursive=options.recursive,
            skip_invalid=options.skip_invalid,
            **defaults,
        )
    except ManifestError as error:
        if not as_json:
            raise
        sys.stdout.writelines(problem_lines(error.problems))
        return None
    check_supported(manifest.kinds, provider)
    return manifest


async def _service_models(provider: str, **more: Any) -> tuple[Model, ...]:
    """Return the models of the service that the catalogue lacks, and that can be run."""
    found: list[Model] = []
    async with KlingSession(provider=provider, **more) as kling:
        for entry in await kling.models():
            if find_model(entry.model) is None:
                with contextlib.suppress(UnsupportedError):
                    found.append(without_price(Model.from_service(entry, provider=provider)))
    return tuple(found)


def without_price(row: Model) -> Model:
    """Return a row of the service that has its price in the formula alone.

    In batches of the identity rules 1 and 2, a price beside the formula is part of the identity of a job: after its
    change, the same list would have other jobs, which would be paid for again.
    """
    return attrs.evolve(
        row, price_per_5s=None, certainty=Certainty.UNKNOWN, source="the service's own catalogue of models"
    )


async def _emulated_models(provider: str) -> tuple[Model, ...]:
    """Return the models of an emulator that the catalogue lacks."""
    from .serving import new_emulator  # noqa: PLC0415 -- only rehearsals need the server

    async with new_emulator(level=LevelChoice.GOLD, profile=ProfileChoice.TINY) as emulator:
        return await _service_models(provider, **emulated(emulator, provider))


def emulated(emulator: Emulator, provider: str) -> dict[str, str]:
    """Return the arguments of a session at an emulator."""
    real = provider == "wavespeed"
    return {
        "base_url": emulator.base_url if real else emulator.gptproto_url,
        "api_key": emulator.api_key if real else emulator.gptproto_key,
    }


def _columns(given: Iterable[str]) -> dict[str, str]:
    """Parse the options `--column`.

    Raises:
        ConfigurationError: One is not FIELD=COLUMN.
    """
    columns: dict[str, str] = {}
    for text in given:
        field, equals, column = text.partition("=")
        if not equals or not field or not column or field in columns:
            raise ConfigurationError(
                f"--column: expected FIELD=COLUMN, each field once, got {text}",
                advice="such as --column image=Filename",
            )
        columns[field] = column
    return columns


def at_this_machine(provider: str) -> bool:
    """Return whether the environment names an emulator on this machine as the service."""
    return is_local(provider_of(provider, "-", None).base_url)


def print_warnings(console: Console, manifest: Manifest, provider: str, *, local: bool) -> None:
    """Print what is left out or travels along, what may not be as expected, and the first warnings about images.

    Args:
        console: The console to print to.
        manifest: The jobs.
        provider: Name of the provider.
        local: Whether the service is an emulator on this machine.
    """
    for group in group_problems(manifest.invalid)[:_MAX_WARNINGS_SHOWN]:
        console.print(problem_line(group), soft_wrap=True)
    if manifest.skipped:
        text = f"{plural(manifest.skipped, 'row')} with problems left out: mend them, and give the list again"
        print_text(console, Text(text, "yellow"))
    if manifest.left_out:
        files = ", ".join(f"{count} x {one_line(kind)}" for kind, count in sorted(manifest.left_out.items()))
        hint = "; --recursive takes the pictures in subfolders" if "subfolders" in manifest.left_out else ""
        print_text(console, Text(f"Left out of {manifest.name}: {files}{hint}", "yellow"))
    if manifest.columns:
        names = ", ".join(manifest.columns[:_MAX_COLUMNS_SHOWN]) + (
            "..." if manifest.columns[_MAX_COLUMNS_SHOWN:] else ""
        )
        print_text(console, Text(one_line(f"Columns kept for the results, and not sent: {names}"), "dim"))
    for caution, rows in manifest.cautions(provider, local=local).items():
        text = f"warning: {plural(rows, 'job')}: {caution}"
        console.print(Text(one_line(text), "yellow"), soft_wrap=True)
    for warning in manifest.warnings[:_MAX_WARNINGS_SHOWN]:
        console.print(Text(one_line(f"warning: {warning}"), "yellow"), soft_wrap=True)
    if len(manifest.warnings) > _MAX_WARNINGS_SHOWN:
        console.print(Text(f"and {plural(len(manifest.warnings) - _MAX_WARNINGS_SHOWN, 'more warning')}", "dim"))
