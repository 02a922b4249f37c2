"""Where jobs come from: a manifest, with what its rows leave unsaid. `run` and `estimate` read the same ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from rich.text import Text

from kling_async.errors import ManifestError
from kling_async.manifest import Manifest, read_manifest

from .output import clean
from .plan import check_supported
from .progress import counted
from .results import problem_lines

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async._core.job import JobFields

_WARNINGS_SHOWN: Final = 10


@attrs.frozen(kw_only=True)
class Source:
    """A manifest as the user names it; see the help of the commands."""

    manifest: Path
    prompt: str | None = None
    model: str | None = None
    duration: int | None = None
    root: Path | None = None
    fit: bool = False

    def read(self) -> Manifest:
        """The manifest, checked.

        Raises:
            ManifestError: Rows of it are wrong.
        """
        common: JobFields = {}
        if self.prompt is not None:
            common["prompt"] = self.prompt
        if self.model is not None:
            common["model"] = self.model
        if self.duration is not None:
            common["duration"] = self.duration
        return read_manifest(self.manifest, root=self.root, fit=self.fit, **common)


def checked(source: Source, provider: str, *, as_json: bool) -> Manifest | None:
    """The manifest, all of which the provider has; None when its problems were written as JSON lines on stdout.

    Raises:
        ManifestError: Rows of it are wrong, and nobody asked for JSON.
        UnsupportedError: The provider has not the models.
    """
    try:
        manifest = source.read()
    except ManifestError as error:
        if not as_json:
            raise
        sys.stdout.writelines(problem_lines(error.problems))
        return None
    check_supported(manifest.kinds, provider)
    return manifest


def tell_warnings(to: Console, manifest: Manifest) -> None:
    """What the service may not like."""
    for warning in manifest.warnings[:_WARNINGS_SHOWN]:
        to.print(Text(clean(f"warning: {warning}"), "yellow"), soft_wrap=True)
    if len(manifest.warnings) > _WARNINGS_SHOWN:
        to.print(Text(f"and {counted(len(manifest.warnings) - _WARNINGS_SHOWN, 'more warning')}", "dim"))
