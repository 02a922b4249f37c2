"""Parsing of `save_to=`, before anything is sent."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kling_async.errors import ConfigurationError

from ._targets import FileTarget
from .naming import MEDIA_TYPES, Template

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from ._objects import Bucket
    from ._targets import Target
    from .naming import Fields

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
"""URL schemes of object stores."""

_DEFAULT_NAME = "{key}"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?")


class Outputs:
    """Location and names of saved outputs.

    ```python
    Outputs("out/")  # out/<key>.mp4
    Outputs("out/", "{date}/{model}/{key}.mp4")  # as the string "out/{date}/{model}/{key}.mp4"
    Outputs("s3://bucket/videos", "{shard}/{key}")  # an object store; obstore finds the credentials
    Outputs("s3://bucket/videos", store=S3Store(...))  # a store with your own options
    ```

    Attributes:
        where: The argument `where`.
        name: The argument `name`.

    Args:
        where: A folder; a file that ends in `.mp4`, for one output (or `.png`, `.wav`, ..., as its model makes); or the
            URL of an object store: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` (extra
            `storage`).
        name: Relative name with fields in braces. `{key}` is the job's key; in the name of a file, of a job without
            one, it is the name of its picture, with the key behind it unless only one picture of the list is called
            so. `{id}` is the prediction's id, `{model}` the model's short name, `{batch}` the batch's name ("unnamed"
            without one), `{date}` the day of acceptance (UTC), `{shard}` two hex digits of the key's digest, for 256
            folders. `.mp4` is added if it is missing, `{key}` after a final slash. Double a literal brace.
        store: An obstore store for `where`, prefix included; by default obstore makes one from the URL. `where` is the
            address by which its files are recorded.
        replace: Whether to replace a file of the same name with other content. If not, the output is saved next to it
            under a name with the beginning of its digest; the `SavedFile` has the path.

    Raises:
        ConfigurationError: An argument cannot be parsed, or obstore is not installed.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        name: str = _DEFAULT_NAME,
        *,
        store: ObjectStore | None = None,
        replace: bool = False,
    ) -> None:
        self.where = where
        self.name = name
        self._replace = replace
        self._template = Template(name)
        self._folder = os.fspath(where)
        self._file: str | None = None
        if name == _DEFAULT_NAME and self._folder.lower().endswith(tuple(MEDIA_TYPES)):
            head, slash, self._file = _split(self._folder)
            self._folder = head + slash or "."
        self._bucket = _bucket(where, self._folder, store)

    def __repr__(self) -> str:
        return f"Outputs({os.fspath(self.where)!r}, {self.name!r})"

    @classmethod
    def of(cls, where: str | os.PathLike[str] | Outputs, *, many: bool = False) -> Outputs:
        """Parse `save_to=`: a folder, a file, a URL or, for a string with braces, a template.

        Args:
            where: The argument. A `Path` is never a template.
            many: Whether more than one output is saved there.

        Raises:
            ConfigurationError: It cannot be parsed, or all outputs would get the same name.
        """
        if isinstance(where, Outputs):
            outputs = where
        elif isinstance(where, str) and (brace := re.search(r"[{}]", where)):
            head, slash, _ = _split(where[: brace.start()])
            folder = head + slash
            outputs = cls(folder or ".", where[len(folder) :].replace(os.sep, "/"))
        else:
            outputs = cls(where)
        if many and (outputs._file is not None or not outputs._template.fields & {"key", "id"}):
            raise ConfigurationError(
                f"save_to: every output would be named {outputs._file or outputs.name}",
                advice="give a folder, or put {key} into the name",
            )
        return outputs

    def target(self, fields: Fields) -> Target:
        """Return the target of one output.

        In object stores, and where files are replaced, the name of a picture never stands alone: two lists may have it.
        """
        if fields.alone and (self._bucket is not None or self._replace):
            fields = attrs.evolve(fields, alone=False)
        name = self._template.render(fields) if self._file is None else self._file
        renamed = self._file is None and self._template.named_otherwise_before(fields)
        if self._bucket is not None:
            return self._bucket.target(name, replace=self._replace, renamed=renamed)
        return FileTarget(Path(self._folder, name), self._replace, renamed)


def _split(path: str) -> tuple[str, str, str]:
    """Split a path at its last separator into head, separator and tail."""
    at = max(path.rfind(separator) for separator in ("/", os.sep))
    return path[: max(at, 0)], path[max(at, 0) : at + 1], path[at + 1 :]


def _bucket(where: str | os.PathLike[str], folder: str, store: ObjectStore | None) -> Bucket | None:
    """Return the object store of a URL; None for a folder of the disk."""
    found = _URL.match(folder)
    scheme = found[1].lower() if found else ""
    known = ", ".join(f"{name}://" for name in SCHEMES)
    if isinstance(where, os.PathLike):
        if scheme in SCHEMES:
            # Path("s3://x") is "s3:/x": a folder of that name would be created.
            raise ConfigurationError(
                f"{os.fspath(where)!r} is a Path", advice="give the URL of an object store as a str"
            )
        scheme = ""
    elif found and not found[0].endswith("//") and scheme not in SCHEMES:
        scheme = ""
    if not scheme:
        if store is not None:
            raise ConfigurationError("store: where must be its URL", advice="such as s3://bucket/prefix")
        return None
    if store is None and scheme not in SCHEMES:
        raise ConfigurationError(f"outputs cannot be saved at {scheme}://", advice=f"expected {known} or a folder")
    try:
        from ._objects import Bucket  # noqa: PLC0415 -- obstore is optional
    except ModuleNotFoundError:
        raise ConfigurationError(
            "object stores need obstore, which is not installed", advice="pip install 'kling-async[storage]'"
        ) from None
    return Bucket.at(folder, store)
