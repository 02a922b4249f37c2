"""The tree of errors: as drawn, picklable, and saying what to do without saying a secret."""

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
    """Names of the real classes, each with the name of its parent."""
    return {sub.__name__: base.__name__ for sub in base.__subclasses__()} | {
        name: parent for sub in base.__subclasses__() for name, parent in tree(sub).items()
    }


def drawn() -> list[tuple[int, str, str]]:
    """Depth, name and remarks of every line of the drawing."""
    assert errors.__doc__ is not None
    lines = re.findall(r"^    ([│├└─ ]*)(\w+)(.*)$", errors.__doc__, re.MULTILINE)
    return [(len(branch) // 4, name, remarks) for branch, name, remarks in lines]


def every_error() -> list[errors.KlingError]:
    """One of every class, with every attribute set to something that is not its default."""
    made: list[errors.KlingError] = []
    special: dict[type[errors.KlingError], dict[str, Any]] = {
        errors.InvalidJobError: {"problems": [Problem("prompt", "required")]},
        errors.ManifestError: {"problems": [RowProblem("jobs.csv", 3, "prompt", "required")]},
        errors.SubmissionUncertainError: {"sent_at": 1_800_000_000.5},
        errors.PredictionFailedError: {"code": 1402, "prediction": Prediction(id="p1", status=Status.FAILED)},
        errors.StorageError: {"target": "out/k1.mp4"},
        errors.BudgetExceededError: {"budget": Decimal(50), "used": Decimal("49.9"), "price": Decimal("0.45")},
        errors.QueueFullError: {"retry_after": 7.5},
        errors.WebhookRefusedError: {"reason": errors.WebhookRefusal.FORGED},
    }
    for name in ["KlingError", *tree()]:
        kind = getattr(errors, name)
        more = dict(special.get(kind, {}))
        if issubclass(kind, errors.ApiError):
            more |= {"status": 418, "code": 7, "retry_after": 2.5, "raw": {"code": 7}}
        about = ABOUT | {"spent": Spent.UNKNOWN, "advice": "do this"}
        # Some say themselves what happened, by what they are given.
        says_itself = "problems" in more or name == "KeyReusedError"
        made.append(kind(**more, **about) if says_itself else kind(f"{name} happened", **more, **about))
    return made


each = pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)


# ---- the drawing ----


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    parents: dict[str, str] = {}
    above: list[str] = []
    for depth, name, _ in drawn():
        above[depth:] = [name]
        if depth:
            parents[name] = above[depth - 1]
    assert above[0] == "KlingError"
    assert parents == tree()


def test_the_drawing_names_the_builtin_bases_and_what_is_account_wide() -> None:
    for _, name, remarks in drawn():
        kind = getattr(errors, name)
        builtin = re.match(r" \((\w+)\)", remarks)
        bases = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins"]
        assert bases == ([builtin[1]] if builtin else ["Exception"] if name == "KlingError" else [])
        assert kind.account_wide == ("account-wide" in remarks)


def test_every_class_is_documented_and_public() -> None:
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
def test_what_a_caller_without_this_package_in_mind_catches(kind: type, builtin: type) -> None:
    assert issubclass(kind, builtin)


# ---- what they carry ----


@each
@pytest.mark.promise(2)
def test_an_error_is_pickled_and_copied_with_all_of_its_attributes(error: errors.KlingError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert other.__dict__ == error.__dict__
        assert other.args == error.args
        assert (str(other), repr(other)) == (str(error), repr(error))


@each
@pytest.mark.promise(2)
def test_an_error_says_what_it_is_about_whether_money_was_spent_and_what_to_do(error: errors.KlingError) -> None:
    said = str(error)
    assert said == f"{error.message} (job k1, prediction p1, request r1); {Spent.UNKNOWN.value}; do this."
    assert "\n" not in said
    assert repr(error) == f"{type(error).__name__}({said!r})"


@each
def test_neither_str_nor_repr_shows_the_signature_of_a_job(error: errors.KlingError) -> None:
    assert error.job is JOB
    assert "c2VjcmV0" not in str(error) + repr(error) + "".join(map(repr, error.__dict__.values()))


def test_an_error_about_nothing_in_particular() -> None:
    error = errors.KlingError("It broke.")
    assert str(error) == "It broke; nothing was spent."
    assert (error.job, error.key, error.prediction_id, error.request_id) == (None, None, None, None)


@pytest.mark.parametrize(
    ("kind", "spent"),
    [
        ("InvalidJobError", Spent.NO),
        ("ConnectFailedError", Spent.NO),
        ("ConnectionLostError", Spent.UNKNOWN),
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
def test_whether_money_was_spent_by_default(kind: str, spent: Spent) -> None:
    assert getattr(errors, kind).default_spent is spent


def test_only_no_connection_means_that_nothing_was_sent() -> None:
    transport = {"TransportError", *tree(errors.TransportError)}
    assert {name for name in transport if not getattr(errors, name).sent} == {"ConnectFailedError"}


def test_a_prediction_brings_its_ids() -> None:
    prediction = Prediction(id="p1", request_id="r1")
    error = errors.PredictionError("it broke", prediction=prediction)
    assert (error.prediction, error.prediction_id, error.request_id) == (prediction, "p1", "r1")
    assert errors.PredictionError("it broke", prediction=prediction, prediction_id="p2").prediction_id == "p2"


def test_a_manifest_of_a_thousand_problems_says_the_first_ones_and_how_many_more() -> None:
    problems = [RowProblem("jobs.csv", line, "prompt", "required") for line in range(1, 1001)]
    error = errors.ManifestError(problems)
    assert len(error.problems) == 1000
    assert "jobs.csv:20 prompt: required; and 980 more" in str(error)


def test_every_class_is_raised_somewhere_in_the_package_or_is_a_base() -> None:
    """A class that nothing raises is a promise that nothing keeps."""
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
