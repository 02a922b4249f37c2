"""The tree of errors, their predicates, pickling, and texts without secrets."""

from __future__ import annotations

import copy
import pickle
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import kling_async
from kling_async import Job, Prediction, Problem, Spent, Status, errors
from kling_async.errors import RowProblem

JOB = Job(prompt="She smiles", image="https://pictures.example/face.png?sig=c2VjcmV0")
ABOUT: dict[str, Any] = {"job": JOB, "key": "k1", "prediction_id": "p1", "request_id": "r1"}


def tree(base: type[BaseException] = errors.KlingError) -> dict[str, str]:
    """Return the names of the classes, each with the name of its parent."""
    return {sub.__name__: base.__name__ for sub in base.__subclasses__()} | {
        name: parent for sub in base.__subclasses__() for name, parent in tree(sub).items()
    }


def drawn() -> list[tuple[int, str, str]]:
    """Return depth, name and remarks of every line of the tree in the docstring."""
    assert errors.__doc__ is not None
    text = errors.__doc__.partition("```text\n")[2].partition("\n```")[0]
    lines = re.findall(r"^([│├└─ ]*)(\w+)(.*)$", text, re.MULTILINE)
    return [(len(branch) // 4, name, remarks) for branch, name, remarks in lines]


def every_error() -> list[errors.KlingError]:
    """Return one error of every class, with no attribute at its default."""
    made: list[errors.KlingError] = []
    special: dict[type[errors.KlingError], dict[str, Any]] = {
        errors.InvalidJobError: {"problems": [Problem("prompt", "required")]},
        errors.ManifestError: {"problems": [RowProblem("jobs.csv", 3, "prompt", "required")]},
        errors.SubmissionUncertainError: {"sent_at": 1_800_000_000.5},
        errors.PredictionFailedError: {"code": 1402, "prediction": Prediction(id="p1", status=Status.FAILED)},
        errors.StorageError: {"target": "out/k1.mp4"},
        errors.BudgetExceededError: {"budget": Decimal(50), "used": Decimal("49.9"), "price": Decimal("0.45")},
        errors.CallerBudgetExceededError: {
            "budget": Decimal(50),
            "used": Decimal("49.9"),
            "price": Decimal("0.45"),
            "caller": "alice",
        },
        errors.AlreadyPaidError: {"batch": "spring", "jobs": 3, "cost": Decimal("0.84")},
        errors.InDoubtElsewhereError: {"batch": "spring", "jobs": 1, "cost": None},
        errors.QueueFullError: {"retry_after": 7.5},
        errors.CallerLimitError: {"retry_after": 7.5, "caller": "alice", "queued": 3},
        errors.WebhookRefusedError: {"reason": errors.WebhookRefusal.FORGED},
    }
    for name in ["KlingError", *tree()]:
        kind = getattr(errors, name)
        more = dict(special.get(kind, {}))
        if issubclass(kind, errors.ApiError):
            more |= {"status": 418, "code": 7, "retry_after": 2.5, "raw": {"code": 7}}
        about = ABOUT | {"spent": Spent.UNKNOWN, "advice": "do this"}
        # These build their message from their arguments.
        builds_message = "problems" in more or name == "KeyReusedError"
        made.append(kind(**more, **about) if builds_message else kind(f"{name} happened", **more, **about))
    return made


each = pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)


# ---- the tree ----


def test_docstring_tree_matches_classes() -> None:
    parents: dict[str, str] = {}
    above: list[str] = []
    for depth, name, _ in drawn():
        above[depth:] = [name]
        if depth:
            parents[name] = above[depth - 1]
    assert above[0] == "KlingError"
    assert parents == tree()


def test_docstring_tree_names_builtin_bases() -> None:
    for _, name, remarks in drawn():
        kind = getattr(errors, name)
        builtin = re.match(r" \((\w+)\)", remarks)
        bases = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins"]
        assert bases == ([builtin[1]] if builtin else ["Exception"] if name == "KlingError" else [])


PREDICATES = ("account_wide", "insufficient_funds", "permanent", "refused", "transient")


def test_docstring_lists_the_classes_of_every_predicate() -> None:
    assert errors.__doc__ is not None
    table = errors.__doc__.partition("Each is False but for:\n\n```text\n")[2].partition("\n```")[0]
    listed: dict[str, set[str]] = {}
    predicate = ""
    for line in table.splitlines():
        if head := re.match(r"(\w+)", line):
            predicate = head[1]
        elif line.strip():
            listed.setdefault(predicate, set()).update(line.split())
    actual = {
        predicate: {name for name in tree() if getattr(getattr(errors, name), predicate, False)}
        for predicate in PREDICATES
    }
    assert listed == actual


def test_predicates_do_not_contradict_each_other() -> None:
    for name in ("KlingError", *tree()):
        kind = getattr(errors, name)
        assert not (kind.permanent and kind.transient), name
        assert not (kind.permanent and kind.account_wide), f"{name}: the operator can fix what is account-wide"
        assert kind.account_wide or not kind.insufficient_funds, name
        if issubclass(kind, errors.ApiError):
            assert not kind.permanent or kind.refused, name


def test_every_error_is_documented_and_public() -> None:
    for name in tree():
        assert getattr(errors, name).__doc__
    missing = {name for name in tree() if name not in kling_async.__all__}
    assert missing <= {"ManifestError"}, "the manifest has a module of its own"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.InvalidJobError, ValueError),
        (errors.ManifestError, ValueError),
        (errors.TransportTimeoutError, TimeoutError),
        (errors.PredictionTimeoutError, TimeoutError),
    ],
)
def test_errors_extend_builtin_exceptions(kind: type, builtin: type) -> None:
    assert issubclass(kind, builtin)


# ---- attributes ----


@each
@pytest.mark.promise(2)
def test_error_pickles_and_copies_with_attributes(error: errors.KlingError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert other.__dict__ == error.__dict__
        assert other.args == error.args
        assert (str(other), repr(other)) == (str(error), repr(error))


@each
@pytest.mark.promise(2)
def test_str_shows_subject_spent_and_advice(error: errors.KlingError) -> None:
    said = str(error)
    assert said == f"{error.message} (job k1, prediction p1, request r1); {Spent.UNKNOWN.value}; do this."
    assert "\n" not in said
    assert repr(error) == f"{type(error).__name__}({said!r})"


@each
def test_str_and_repr_hide_signatures(error: errors.KlingError) -> None:
    assert error.job is JOB
    assert "c2VjcmV0" not in str(error) + repr(error) + "".join(map(repr, error.__dict__.values()))


@pytest.mark.parametrize("name", ["KlingError", *tree()])
def test_error_is_one_line_without_control_characters(name: str) -> None:
    """A service, a file or a user may be quoted; `raw` and the objects have what they said."""
    hostile = "[/b]\x1b[2J\x9b31m\r\nforged\u2028\u202e\udc80"
    kind = getattr(errors, name)
    error = next(made for made in every_error() if type(made) is kind)
    again = type(error).__new__(type(error))
    again.__dict__.update(error.__dict__)
    errors.KlingError.__init__(again, hostile, key=hostile, prediction_id=hostile, request_id=hostile, advice=hostile)
    for shown in (str(again), again.message, repr(again), str(again.args)):
        assert "forged" in shown
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202e\ud800-\udfff]", shown)
    assert again.key == hostile


def test_error_without_context_has_short_str() -> None:
    error = errors.KlingError("It broke.")
    assert str(error) == "It broke; nothing was spent."
    assert (error.job, error.key, error.prediction_id, error.request_id) == (None, None, None, None)


@pytest.mark.parametrize(
    ("kind", "spent"),
    [
        ("InvalidJobError", Spent.NO),
        ("ConnectFailedError", Spent.NO),
        ("ConnectionLostError", Spent.UNKNOWN),
        ("ReplyTooLargeError", Spent.UNKNOWN),
        ("TransportTimeoutError", Spent.UNKNOWN),
        ("SubmissionUncertainError", Spent.UNKNOWN),
        ("LedgerError", Spent.NO),
        ("SkippedError", Spent.NO),
        ("AuthenticationError", Spent.NO),
        ("PredictionFailedError", Spent.REFUNDABLE),
        ("PredictionTimeoutError", Spent.YES),
        ("NoOutputError", Spent.YES),
        ("StorageError", Spent.YES),
        ("WebhookRefusedError", Spent.UNKNOWN),
    ],
)
def test_default_spent(kind: str, spent: Spent) -> None:
    assert getattr(errors, kind).default_spent is spent


def test_only_connect_failures_are_unsent() -> None:
    transport = {"TransportError", *tree(errors.TransportError)}
    assert {name for name in transport if not getattr(errors, name).sent} == {"ConnectFailedError"}


def test_prediction_error_takes_ids_from_prediction() -> None:
    prediction = Prediction(id="p1", request_id="r1")
    error = errors.PredictionError("it broke", prediction=prediction)
    assert (error.prediction, error.prediction_id, error.request_id) == (prediction, "p1", "r1")
    assert errors.PredictionError("it broke", prediction=prediction, prediction_id="p2").prediction_id == "p2"


def test_manifest_error_shows_first_problems_and_count() -> None:
    problems = [RowProblem("jobs.csv", line, "prompt", "required") for line in range(1, 1001)]
    error = errors.ManifestError(problems)
    assert len(error.problems) == 1000
    assert "invalid manifest: jobs.csv prompt: required: rows 1, 2, 3 and 997 more;" in str(error)
    various = [RowProblem("jobs.csv", line, "prompt", f"required: {line} characters") for line in range(1, 1001)]
    assert "jobs.csv:20 prompt: required: 20 characters; and 980 more;" in str(errors.ManifestError(various))


def test_alike_problems_are_grouped_with_their_places() -> None:
    def problem(line: int | None, message: str, path: str = "image", file: str = "jobs.csv") -> RowProblem:
        return RowProblem(file, line, path, message)

    problems = [
        problem(3, "'a.png' does not exist"),
        problem(4, "required", "prompt"),
        problem(5, "'b.png' does not exist"),
        problem(9, "required", "prompt"),
        problem(None, "is truncated", file="photos/a.png"),
        problem(None, "is truncated", file="photos/b.png"),
        problem(12, "is not JSON", ""),
        problem(13, "is not JSON", ""),
    ]
    assert [str(group) for group in errors.group_problems(problems)] == [
        "jobs.csv image: 'a.png' does not exist, and the like: rows 3, 5",
        "jobs.csv prompt: required: rows 4, 9",
        "image: is truncated: photos/a.png, photos/b.png",
        "jobs.csv: is not JSON: rows 12, 13",
    ]


def test_every_error_class_is_used() -> None:
    """Every class is raised in the package, or is a base class."""
    package = Path(kling_async.__file__).parent
    modules = [path for path in package.rglob("*.py") if path.name != "errors.py" and "emulator" not in path.parts]
    source = "\n".join(path.read_text() for path in modules if path != package / "__init__.py")
    bases = set(tree().values())
    unused = {
        name
        for name in tree()
        if name not in bases and not re.search(rf"^(?! *{name},$).*\b{name}\b", source, re.MULTILINE)
    }
    assert not unused
