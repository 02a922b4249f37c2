"""Read the manifest that `run` and `estimate` are given."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from rich.text import Text

from kling_async._core.text import one_line
from kling_async.errors import ManifestError
from kling_async.manifest import Manifest, read_manifest

from .output import plural
from .plan import check_supported
from .results import problem_lines

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async._core.job import JobFields

    from .options import SourceOptions

_MAX_WARNINGS_SHOWN: Final = 10


def read_source(options: SourceOptions, provider: str, *, as_json: bool) -> Manifest | None:
    """Read and check a manifest.

    Args:
        options: The manifest, and defaults for its rows.
        provider: Name of the provider, which must have every model.
        as_json: Write problems to stdout as JSON lines and return None instead of raising `ManifestError`.

    Raises:
        ManifestError: Rows are wrong.
        UnsupportedError: The provider lacks a model.
    """
    defaults: JobFields = {}
    if options.prompt is not None:
        defaults["prompt"] = options.prompt
    if options.model is not None:
        defaults["model"] = options.model
    if options.duration is not None:
        defaults["duration"] = options.duration
    try:
        manifest = read_manifest(options.manifest, root=options.root, fit=options.fit, **defaults)
    except ManifestError as error:
        if not as_json:
            raise
        sys.stdout.writelines(problem_lines(error.problems))
        return None
    check_supported(manifest.kinds, provider)
    return manifest


def print_warnings(console: Console, manifest: Manifest, provider: str) -> None:
    """Print what may not be as expected at the provider, and the first warnings about images."""
    for caution, rows in manifest.cautions(provider).items():
        text = f"warning: {plural(rows, 'job')}: {caution}"
        console.print(Text(one_line(text), "yellow"), soft_wrap=True)
    for warning in manifest.warnings[:_MAX_WARNINGS_SHOWN]:
        console.print(Text(one_line(f"warning: {warning}"), "yellow"), soft_wrap=True)
    if len(manifest.warnings) > _MAX_WARNINGS_SHOWN:
        console.print(Text(f"and {plural(len(manifest.warnings) - _MAX_WARNINGS_SHOWN, 'more warning')}", "dim"))
