"""Check rows and make jobs of them."""

from __future__ import annotations

import functools
import re
from array import array
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import attrs

from kling_async._core.catalogue import Model
from kling_async._core.chains import broken_chains, dependents
from kling_async._core.input_files import HEAD_BYTES, MEDIA, media_type, replaced
from kling_async._core.job import IMAGES, TREES, Job, JobFields
from kling_async._core.job_key import key_or_problem
from kling_async._core.job_validation import IMAGE_LISTS
from kling_async._core.media import ACCEPTED_IMAGE_TYPES, MAX_IMAGE_BYTES, FileFacts, ImageFacts
from kling_async._core.picture_names import NameCounter, UniqueNames, picture_name
from kling_async._core.prices import Kind
from kling_async._core.video_frames import FrameAt, LastFrame, problem_of_seconds
from kling_async._images.inspection import inspect
from kling_async._images.preflight import preflight
from kling_async.errors import InvalidJobError, ManifestError, Problem, RowProblem

from ._files import URL, content_of_base64, find_file, looks_like_picture, shown
from ._row import CONTINUES, CONTINUES_AT, NOTE, located, with_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._row import Row, Source

Keyed: TypeAlias = tuple[str | None, Job]
"""Key of a row, None if it has none, and its job."""
Facts: TypeAlias = FileFacts | ImageFacts
FileCheck: TypeAlias = "Callable[[Path | bytes, str], Facts | str]"
"""Returns the facts of a file at a place in a job, or its problem."""

FILE_PREFIX: Final = "file:"
"""Beginning of a text in a JSON value of a row that names a file."""
_MEDIA_SUFFIX = re.compile(r"[^\n]{1,4096}\.(jpe?g|png|webp|gif|mp4|mov|webm|mp3|wav)", re.IGNORECASE)
_FILE_FIELDS: Final = frozenset({*IMAGES, *IMAGE_LISTS, *TREES})
_PLACEHOLDER: Final = Path()
_MAX_CACHED_FILE_CHECKS: Final = 4096
_KEY_BUCKETS: Final = 256


@attrs.frozen
class Following:
    """A row that continues others.

    Attributes:
        parents: Keys of the rows that it continues.
        line: Its position.
        file: File of the row in problems; None for that of the source.
    """

    parents: tuple[str, ...]
    line: int
    file: str | None


def name_of(key: str | None, line: int) -> str:
    """Return the name of a row among those that continue others: its key, or what no key is."""
    return f"\0{line}" if key is None else key


@attrs.define
class Findings:
    """Result of checking every row.

    Attributes:
        problems: Reasons to refuse the manifest, or, of rows that are left out, to leave them out.
        warnings: Properties of images that the service may not accept, by the positions of the rows.
        kinds: Number of rows of each kind.
        models: Catalogue entries of the models, by id.
        cautions: Number of rows for which something may not be as expected at a provider, by provider, whether it is
            an emulator on this machine, and message.
        skipped: Positions of the rows that are left out, with the problems of those that are valid by themselves: their
            key is repeated, or they continue a row that is not there.
        columns: Names under which other columns travel along.
        unique_names: Names of pictures that no other row has, as its picture's or as its key.
        following: Rows that continue others, by their names (`name_of`); of several with one key, the first.
    """

    problems: list[RowProblem] = attrs.field(factory=list)
    warnings: dict[int, list[RowProblem]] = attrs.field(factory=dict)
    kinds: Counter[Kind] = attrs.field(factory=Counter)
    models: dict[str, Model] = attrs.field(factory=dict)
    cautions: Counter[tuple[str, bool, Problem]] = attrs.field(factory=Counter)
    skipped: dict[int, Problem | None] = attrs.field(factory=dict)
    columns: dict[str, None] = attrs.field(factory=dict)
    unique_names: UniqueNames = attrs.field(factory=UniqueNames)
    following: dict[str, Following] = attrs.field(factory=dict)

    _cautious: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    """Providers of each model that jobs may have cautions at."""

    def add(self, job: Job, facts: Mapping[str, Facts], *, fit: bool, times: int = 1) -> None:
        """Count a job.

        Args:
            job: The job.
            facts: Facts of its files, by their places.
            fit: Whether images are converted.
            times: 1, or -1 to take it back.
        """
        self.kinds[job.kind] += times
        if job.model not in self.models:
            self.models[job.model] = row = job.row
            self._cautious[job.model] = tuple(
                name for name in row.providers if row.cautions or row.at_provider(name).sound_by_default
            )
        shown = [Problem(place, said) for place, each in facts.items() for said in each.cautions if not fit]
        everywhere = shown or job.own_row is not None or job.picture_cautions(fit=fit)
        for provider in job.row.providers if everywhere else self._cautious[job.model]:
            for local in (False, True):
                for caution in (*job.cautions(provider, fit=fit, local=local), *shown):
                    self.cautions[provider, local, caution] += times

    def add_following(self, row: Row, key: str | None, job: Job) -> None:
        """Record what a row continues, if it does."""
        if parents := job.parents:
            self.following.setdefault(name_of(key, row.line), Following(parents, row.line, row.file))


MAX_PROBLEMS: Final = 10_000
"""Problems after which the rest of a source is not checked, since each takes memory."""
_MAX_COLUMNS: Final = 1_000
_HEADER_FIRST: Final = (
    "correct the header, or name columns with columns={FIELD: COLUMN} (--column FIELD=COLUMN); the rows are checked "
    "after it"
)


def check_rows(
    source: Source,
    root: Path | None,
    common: Mapping[str, object],
    *,
    fit: bool,
    models: Mapping[str, Model],
    skip_invalid: bool = False,
) -> Findings:
    """Check the defaults, then the header, then every row and every file.

    Args:
        source: The rows.
        root: Folder of their files; None if strings are URLs only.
        common: Fields used where a row has none.
        fit: Convert images that the service would not accept.
        models: Models outside of the catalogue that rows may name, by name.
        skip_invalid: Leave invalid rows out. Problems of the defaults, the header and the whole file stay reasons to
            refuse the manifest.

    Raises:
        OSError: The source cannot be read.
        ManifestError: The defaults, the header or the file are wrong.
    """
    findings = Findings()
    _check_common(source, {**common, "model": _model(common["model"], models)} if "model" in common else common)
    keys, names = _Keys(), NameCounter()
    left_out: set[str] | None = set() if skip_invalid else None
    complete = True
    check = functools.lru_cache(_MAX_CACHED_FILE_CHECKS)(functools.partial(check_file, fit=fit))
    job_of = functools.partial(job_of_row, root=root, common=common, fit=fit, models=models, check=check)
    with closing(source.rows()) as rows:
        for row in rows:
            if row.header or (skip_invalid and row.problems and not row.line):
                wrong = [located(source, row, problem) for problem in row.problems]
                raise ManifestError(wrong, advice=_HEADER_FIRST if row.header else "correct the file, and run it again")
            if row.labels and len(findings.columns) < _MAX_COLUMNS:
                findings.columns.update(dict.fromkeys(row.labels))
            facts: dict[str, Facts] = {}
            found = job_of(row, facts=facts)
            key = found[0] if isinstance(found, tuple) else key_of(row)
            if key is not None and (left_out is None or isinstance(found, tuple)):
                keys.add(key, row.line)
            elif key is not None and left_out is not None:
                left_out.add(key)
            names.add(key or picture_name(row.fields.get("image", common.get("image"))))
            if isinstance(found, tuple):
                if any(known.warnings for known in facts.values()):
                    warnings = (Problem(place, said) for place, known in facts.items() for said in known.warnings)
                    findings.warnings[row.line] = [located(source, row, warning) for warning in warnings]
                findings.add(found[1], facts, fit=fit)
                findings.add_following(row, *found)
                continue
            if skip_invalid:
                findings.skipped[row.line] = None
            if not skip_invalid or len(findings.problems) < MAX_PROBLEMS:
                findings.problems += (located(source, row, problem) for problem in found)
            if not skip_invalid and len(findings.problems) >= MAX_PROBLEMS:
                end = Problem("", f"the check ended here, after {len(findings.problems):,} problems")
                findings.problems.append(located(source, row, end))
                complete = False
                break
    late = _late_problems(source, findings, keys, left_out, complete=complete)
    # Problems of a folder have no lines and are in its order already.
    findings.problems.sort(key=lambda problem: problem.line or 0)
    if skip_invalid:
        del findings.problems[MAX_PROBLEMS:]
        _take_back(source, findings, late, job_of, fit=fit)
    findings.unique_names = names.unique()
    return findings


def _late_problems(
    source: Source, findings: Findings, keys: _Keys, left_out: set[str] | None, *, complete: bool
) -> dict[int, Problem]:
    """Add the problems that show only when all rows have been read; return them by the positions of the rows.

    Args:
        source: The rows.
        findings: Has those that continue others, and receives the problems.
        keys: Keys of the rows that are not left out by themselves.
        left_out: Keys of the rows that are; None if no row is to be left out.
        complete: Whether all rows were read: else rows may continue one that was not.
    """
    late: dict[int, Problem] = {}
    for row, problem in _repeated_keys(source, keys):
        findings.problems.append(located(source, row, problem))
        late[row.line] = problem
    following = findings.following
    if left_out is not None:
        # The key is that of the earlier row, which may continue none.
        following = {name: of for name, of in following.items() if of.line not in late}
    for name, said in _broken_chains(following, keys, left_out).items() if complete else ():
        problem = Problem(CONTINUES, said)
        findings.problems.append(located(source, following[name], problem))
        late[following[name].line] = problem
    return late


def _broken_chains(following: Mapping[str, Following], keys: _Keys, left_out: set[str] | None) -> dict[str, str]:
    """Return what is wrong with rows that continue themselves, rows that are not there, or rows that are left out.

    Args:
        following: Rows that continue others, by their names.
        keys: Keys of the rows that are not left out by themselves.
        left_out: Keys of the rows that are; None if no row is to be left out.
    """
    if not following:
        return {}
    parents = {name: row.parents for name, row in following.items()}
    if left_out is None:
        return broken_chains(parents, keys)
    orphans = dependents(parents, (key for key in left_out if key not in keys))
    wrong = broken_chains({name: of for name, of in parents.items() if name not in orphans}, keys)
    orphans |= dependents(parents, wrong)
    return {name: f"continues {shown(parent)}, which is left out" for name, parent in orphans.items()} | wrong


def _take_back(
    source: Source,
    findings: Findings,
    late: Mapping[int, Problem],
    job_of: Callable[..., Keyed | list[Problem]],
    *,
    fit: bool,
) -> None:
    """Leave out rows that were counted, as their problems showed only when all rows had been read.

    Args:
        source: The rows.
        findings: Has counted them.
        late: Their problems, by the positions of the rows.
        job_of: Returns key and job of a row.
        fit: Whether images are converted.
    """
    if not late:
        return
    findings.skipped |= late
    findings.following = {name: of for name, of in findings.following.items() if of.line not in late}
    with closing(source.rows()) as rows:
        for row in rows:
            if row.line not in late:
                continue
            findings.warnings.pop(row.line, None)
            facts: dict[str, Facts] = {}
            found = job_of(row, facts=facts)
            if isinstance(found, tuple):
                findings.add(found[1], facts, fit=fit, times=-1)
    findings.kinds = +findings.kinds
    findings.cautions = +findings.cautions
    used = {kind.model for kind in findings.kinds}
    findings.models = {id_: model for id_, model in findings.models.items() if id_ in used}


def _check_common(source: Source, common: Mapping[str, object]) -> None:
    """Raise if the fields for rows without them are wrong, whatever the rows are.

    Raises:
        ManifestError: They are.
    """
    try:
        Job(**cast("JobFields", {"prompt": "x", "image": _PLACEHOLDER, **common}))
    except InvalidJobError as error:
        # Without a model among them, rows may have one that takes the others.
        certain = [
            RowProblem(source.name, None, problem.path, f"{problem.message} (given for rows without it)")
            for problem in error.problems
            if problem.path in common.keys() - _FILE_FIELDS
            and ("model" in common or problem.path not in JobFields.__annotations__)
        ]
        if certain:
            raise ManifestError(certain, advice="correct the options; the rows are checked after them") from None


def job_of_row(
    row: Row,
    root: Path | None,
    common: Mapping[str, object],
    *,
    fit: bool,
    models: Mapping[str, Model],
    check: FileCheck | None = None,
    facts: dict[str, Facts] | None = None,
) -> Keyed | list[Problem]:
    """Return the key and the job of a row, or its problems.

    Args:
        row: The row.
        root: Folder of its files; None if strings are URLs only.
        common: Fields used where the row has none.
        fit: Convert image bytes that the service would not accept.
        models: Models outside of the catalogue that it may name, by name.
        check: Checks the files, whose place in the job a placeholder takes; None leaves them as they are.
        facts: Receives the facts of the checked files, by their places.
    """
    if row.problems:
        return list(row.problems)
    fields = _fields(row, common)
    key = fields.pop("key", None)
    fields.pop(NOTE, None)
    problems: list[Problem] = []
    _continue(row, fields, problems)
    if key is not None:
        key = key_or_problem(key)
        if isinstance(key, Problem):
            problems.append(key)

    def take(place: str, value: object) -> object:
        try:
            taken, known = _file(value, root, place, fit=fit, check=check)
        except ValueError as error:
            problems.append(Problem(place, str(error)))
            # Lets the job check its other fields.
            return _PLACEHOLDER
        if facts is not None and known is not None:
            facts[place] = known
        return taken

    for name in IMAGES:
        fields[name] = take(name, fields.get(name))
    for name in (*IMAGE_LISTS, *TREES):
        if fields.get(name):
            try:
                fields[name] = replaced(fields[name], name, take)
            except RecursionError:
                problems.append(Problem(name, "is nested too deeply"))
    problems += _pictures_in_prompts(fields)
    fields["model"] = _model(fields.get("model"), models)
    try:
        job = Job(**cast("JobFields", fields))
    except InvalidJobError as error:
        return problems + list(error.problems)
    return problems or (cast("str | None", key), job)


def _continue(row: Row, fields: dict[str, object], problems: list[Problem]) -> None:
    """Replace the key of the row that a row continues by the frame that its job begins with."""
    key, at, own = fields.pop(CONTINUES, None), fields.pop(CONTINUES_AT, None), row.fields.get("image")
    if key is None or key == "":
        if at is not None:
            problems.append(Problem(CONTINUES_AT, "expected continues with it, got none"))
        return
    if at is not None and (said := problem_of_seconds(at)):
        problems.append(Problem(CONTINUES_AT, said))
        at = None
    parent = key_or_problem(key)
    if isinstance(parent, Problem):
        problems.append(Problem(CONTINUES, parent.message))
    if own is not None and own != "":
        problems.append(Problem(CONTINUES, "expected either continues or image, got both"))
    if isinstance(parent, Problem):
        fields["image"] = _PLACEHOLDER
    else:
        fields["image"] = LastFrame(parent) if at is None else FrameAt(parent, cast("float", at))


def _pictures_in_prompts(fields: dict[str, object]) -> list[Problem]:
    """Return the problems of prompts that are pictures, and put other texts there, for the check of the rest."""
    found = [name for name in ("prompt", "negative_prompt") if looks_like_picture(fields.get(name))]
    fields |= dict.fromkeys(found, "x")
    return [Problem(name, "is a picture in base64: it belongs into the column of the image") for name in found]


def _fields(row: Row, common: Mapping[str, object]) -> dict[str, object]:
    return with_labels(
        {**common, **{name: value for name, value in row.fields.items() if value is not None}}, row.labels
    )


def _model(name: object, models: Mapping[str, Model]) -> object:
    return models.get(name, name) if isinstance(name, str) else name


def _file(
    value: object, root: Path | None, place: str, *, fit: bool, check: FileCheck | None
) -> tuple[object, Facts | None]:
    """Return a file for the job, or any other value as it is, and its facts if it was checked.

    Raises:
        ValueError: The file has a problem.
    """
    if isinstance(value, str):
        value = _named_file(value, root) if place.startswith(TREES) else _named(value, root)
    if not isinstance(value, (Path, bytes)):
        return value, None
    if check is not None:
        facts = check(value, place)
        if isinstance(facts, str):
            raise ValueError(facts)
        # The job would keep the original.
        return value if isinstance(value, Path) else _placeholder(value), facts
    if fit and isinstance(value, bytes) and media_type(value[:HEAD_BYTES]) is None:
        try:
            value = _converted(value)
        except InvalidJobError as error:
            raise ValueError(error.problems[0].message) from None
    return value, None


def _placeholder(content: bytes) -> Path:
    """Return a file that stands for bytes; its suffix tells the kind, which may determine the price."""
    return Path(f"file{MEDIA[kind][2]}") if (kind := media_type(content[:HEAD_BYTES])) else _PLACEHOLDER


def _named_file(text: str, root: Path | None) -> str | Path:
    """Return the file that a text in a JSON value names, or the text.

    Raises:
        ValueError: There is no such file, or the text is the name of one without saying so.
    """
    if text.startswith(FILE_PREFIX):
        if root is None:
            raise ValueError("expected a Path for a file, because these rows have no folder")
        return find_file(text.removeprefix(FILE_PREFIX).removeprefix("//"), root)
    if root is not None and _MEDIA_SUFFIX.fullmatch(text) and not URL.match(text):
        try:
            find_file(text, root)
        except ValueError:
            return text
        # It would be sent as a text, and charged.
        raise ValueError(f"{shown(text)} is a file here: to send it, write {FILE_PREFIX + text!r:.200}")
    return text


def _named(text: str, root: Path | None) -> str | Path | bytes:
    """Return the image that a text of a row means: a URL, a file below the root, or the content itself.

    Raises:
        ValueError: It has a problem.
    """
    content = content_of_base64(text)
    if content is not None:
        return content
    if root is None or (URL.match(text) and not text.startswith("file:")):
        return text
    return find_file(text, root)


def check_file(file: Path | bytes, place: str, *, fit: bool) -> Facts | str:
    """Return the facts of a file at a place in a job, or its problem."""
    try:
        return inspect(file, field=place, fit=fit)
    except InvalidJobError as error:
        return error.problems[0].message


def _converted(content: bytes) -> bytes:
    """Return image bytes of a row as they identify its job: of another format, too many, or rotated, converted.

    All others that need conversion are left to the session.
    """
    facts = preflight(content, fit=True)
    rotated = facts.turned and facts.type == "image/jpeg"
    if facts.type in ACCEPTED_IMAGE_TYPES and facts.bytes <= MAX_IMAGE_BYTES and not rotated:
        return content
    # Imported here: Pillow is an extra.
    from kling_async._core.former_pictures import MAX_FORMER_PIXELS, former_bytes, with_former  # noqa: PLC0415 -- see above
    from kling_async._images.convert import convert  # noqa: PLC0415 -- see above

    rules = (1, 2) if facts.width * facts.height <= MAX_FORMER_PIXELS else ()
    return with_former(convert(content), {rule: former_bytes(content, rule) for rule in rules})


def key_of(row: Row) -> str | None:
    """Return the key of a row; None if it has none, or an invalid one."""
    key = row.fields.get("key")
    text = None if key is None else key_or_problem(key)
    return text if isinstance(text, str) else None


class _Keys:
    """Hashes of keys with their lines, in 16 bytes per key: a manifest may have millions.

    Equal hashes only suggest equal keys, so these lines have to be compared. The hashes are spread over many buckets,
    which are searched one at a time.
    """

    def __init__(self) -> None:
        self._buckets = [(array("q"), array("Q")) for _ in range(_KEY_BUCKETS)]

    def __contains__(self, key: object) -> bool:
        """Return whether there is a key, as far as its hash tells."""
        digest = hash(key)
        return digest in self._buckets[digest % _KEY_BUCKETS][0]

    def add(self, key: str, line: int) -> None:
        """Add a key."""
        digest = hash(key)
        digests, lines = self._buckets[digest % _KEY_BUCKETS]
        digests.append(digest)
        lines.append(line)

    def suspects(self) -> set[int]:
        """Return the lines whose keys may be repeated."""
        suspects: set[int] = set()
        for digests, lines in self._buckets:
            first: dict[int, int] = {}
            for digest, line in zip(digests, lines, strict=True):
                earlier = first.setdefault(digest, line)
                if earlier != line:
                    suspects |= {earlier, line}
        return suspects


def _repeated_keys(source: Source, keys: _Keys) -> Iterator[tuple[Row, Problem]]:
    """Read the source again and yield every row whose key an earlier one has."""
    suspects = keys.suspects()
    if not suspects:
        return
    first: dict[str, str] = {}
    with closing(source.rows()) as rows:
        for row in rows:
            if row.line not in suspects:
                continue
            key = key_of(row)
            if key is None:
                continue
            place = row.file or f"{source.unit} {row.line}"
            earlier = first.setdefault(key, place)
            if earlier != place:
                yield row, Problem("key", f"{shown(key)} is already the key of {earlier}")
