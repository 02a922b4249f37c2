"""What can go wrong, by script.

    emu.faults.add("submit", faults.AcceptThenDrop(), times=1, after=2)

lets two submits pass and loses the answer of the third, after it was accepted and charged. Rules are looked at in the
order they were added; each matching exchange uses up one of a rule's `times`. `Delay` goes together with whatever
rule comes next; of the others, one per exchange applies.

Routes: `submit`, `result`, `list`, `delete`, `models`, `price`, `balance`, `billings`, `usage`, `webhook_secret`,
`upload_ticket`, `upload_put`, `upload_binary`, `upload_get`, `output`, and `webhook` for the deliveries that the
emulator sends. `"*"` means every route but `webhook`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeVar, cast

import attrs

__all__ = [
    "ROUTES",
    "AcceptThenDrop",
    "Call",
    "CutBody",
    "DataItems",
    "DataList",
    "Delay",
    "Drop",
    "DropAfterReading",
    "Duplicate",
    "EmptyOutputs",
    "EnvelopeCode",
    "Enveloped",
    "FailTask",
    "Fault",
    "Faults",
    "Flagged",
    "Html502",
    "NullFlags",
    "NullOutputs",
    "ObjectOutputs",
    "Rule",
    "Shape",
    "SlowBody",
    "Sparse",
    "Status",
    "StatusLag404",
    "StringOutputs",
    "TruncatedJson",
    "UnknownStatus",
    "Unwrapped",
    "Wrapping",
    "build",
]

ROUTES: Final = frozenset(
    {
        "submit",
        "result",
        "list",
        "delete",
        "models",
        "price",
        "balance",
        "billings",
        "usage",
        "webhook_secret",
        "upload_ticket",
        "upload_put",
        "upload_binary",
        "upload_get",
        "output",
        "webhook",
    }
)
"""The names a rule may be added for, besides `"*"`."""


@attrs.frozen
class Drop:
    """Close the connection without reading the request's body: nothing is accepted.

    Attributes:
        reset: whether the peer sees a TCP reset instead of an orderly end.
    """

    reset: bool = False


@attrs.frozen
class DropAfterReading:
    """Read the whole request, do nothing, close the connection.

    Attributes:
        reset: whether the peer sees a TCP reset instead of an orderly end.
    """

    reset: bool = False


@attrs.frozen
class AcceptThenDrop:
    """Do everything that was asked for (create, charge), then close the connection instead of answering.

    Attributes:
        reset: whether the peer sees a TCP reset instead of an orderly end.
    """

    reset: bool = False


@attrs.frozen
class Delay:
    """Wait before handling the request, or between handling and answering.

    Attributes:
        seconds: on the emulator's clock.
        accepted: whether the request is handled before the wait.
    """

    seconds: float
    accepted: bool = False


@attrs.frozen
class Status:
    """Answer with an HTTP status and the persona's error body.

    Attributes:
        status: HTTP status.
        message: text of the error; None takes a usual one.
        retry_after: seconds, or any text, for a `Retry-After` header; None sends none.
        accepted: whether the request is carried out all the same.
        body: what is sent instead of the persona's error body: an object as JSON, a text as plain text.
    """

    status: int
    message: str | None = None
    retry_after: float | str | None = None
    accepted: bool = False
    body: Mapping[str, object] | str | None = None


@attrs.frozen
class Html502:
    """Answer as a gateway does: HTTP 502 and a page of HTML.

    Attributes:
        accepted: whether the request is carried out all the same.
    """

    accepted: bool = False


@attrs.frozen
class EnvelopeCode:
    """HTTP 200 with a `code` in the envelope that says otherwise.

    Attributes:
        code: `code` of the envelope.
        message: `message` of the envelope.
        accepted: whether the request is carried out all the same.
    """

    code: int = 500
    message: str = "Internal server error"
    accepted: bool = False


@attrs.frozen
class TruncatedJson:
    """Do everything that was asked for and answer in good form, but with half of the JSON."""


@attrs.frozen
class Unwrapped:
    """The data alone, without an envelope around it."""


@attrs.frozen
class DataList:
    """`data` is a list of one, with the usual data in it."""


@attrs.frozen
class DataItems:
    """`data` is an object with the usual list in its `items`, as one page of the vendor has it for the models."""


Wrapping = Unwrapped | DataList | DataItems
"""Deviations in how an answer is enveloped."""


@attrs.frozen
class SlowBody:
    """Send the body of the answer in pieces.

    Attributes:
        seconds: how long the whole takes, on the emulator's clock.
        pieces: how many.
    """

    seconds: float
    pieces: int = 10


@attrs.frozen
class CutBody:
    """Announce the full length, send the first bytes, close the connection.

    Attributes:
        after_bytes: how many bytes of the body arrive.
    """

    after_bytes: int


@attrs.frozen
class Duplicate:
    """Deliver a webhook twice."""


@attrs.frozen
class Enveloped:
    """Deliver a webhook in the envelope of the other answers."""


@attrs.frozen
class FailTask:
    """Accept the submit; the prediction will not complete. The money is given back as for any failure.

    Attributes:
        code: `data.code`; None leaves it out.
        message: `data.error`.
        status: the terminal word.
        seconds: when it ends after the submit; None takes the time a success would have taken.
    """

    code: int | None = 1405
    message: str = "Task failed."
    status: Literal["failed", "cancelled", "canceled", "timeout"] = "failed"
    seconds: float | None = None


@attrs.frozen
class StatusLag404:
    """Reads lag behind writes. On `submit`: the prediction is not found at first. On `result`: this once.

    Attributes:
        seconds: for how long, on the emulator's clock; only on `submit`.
    """

    seconds: float = 2.0


@attrs.frozen
class EmptyOutputs:
    """`completed` with `outputs: []`."""


@attrs.frozen
class NullOutputs:
    """`completed` with `outputs: null` and `has_nsfw_contents: null`."""


@attrs.frozen
class ObjectOutputs:
    """`completed` with `outputs: [{"url": ...}]`."""


@attrs.frozen
class StringOutputs:
    """`completed` with `outputs: "https://..."`."""


@attrs.frozen
class NullFlags:
    """`completed` with `has_nsfw_contents: null`."""


@attrs.frozen
class Flagged:
    """`completed`, with outputs and `has_nsfw_contents: [true]`."""


@attrs.frozen
class Sparse:
    """`completed` with no more than `id`, `status` and `outputs`."""


@attrs.frozen
class UnknownStatus:
    """A status word no document knows, in the place of the true one; outputs are left out.

    Attributes:
        word: the word.
    """

    word: str


Shape = EmptyOutputs | NullOutputs | ObjectOutputs | StringOutputs | NullFlags | Flagged | Sparse | UnknownStatus
"""Deviations in how a result is written. On `submit` they stay with the prediction for good (an unknown word: until it
has ended); on `result` and `list` they bend single answers, those about outputs only answers that have outputs."""

Fault = (
    Drop
    | DropAfterReading
    | AcceptThenDrop
    | Delay
    | Status
    | Html502
    | EnvelopeCode
    | TruncatedJson
    | SlowBody
    | CutBody
    | Duplicate
    | Enveloped
    | FailTask
    | StatusLag404
    | Wrapping
    | Shape
)
"""Any kind of fault."""

_SHAPES: Final = (
    EmptyOutputs,
    NullOutputs,
    ObjectOutputs,
    StringOutputs,
    NullFlags,
    Flagged,
    Sparse,
    UnknownStatus,
)
_FILES: Final = frozenset({"upload_put", "upload_get", "output", "webhook"})
_ANSWERS: Final = ROUTES - _FILES
_KINDS: Final[tuple[type[Fault], ...]] = (
    Drop,
    DropAfterReading,
    AcceptThenDrop,
    Delay,
    Status,
    Html502,
    EnvelopeCode,
    TruncatedJson,
    SlowBody,
    CutBody,
    Duplicate,
    Enveloped,
    FailTask,
    StatusLag404,
    Unwrapped,
    DataList,
    DataItems,
    *_SHAPES,
)
_BY_NAME: Final[Mapping[str, type[Fault]]] = {kind.__name__: kind for kind in _KINDS}

# What JSON may give for a word in a field's annotation.
_JSON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "Literal": (str,),
    "Mapping": (dict,),
    "None": (type(None),),
}

# Kinds that make sense on some routes only.
_PLACES: Final[Mapping[type[object], frozenset[str]]] = {
    FailTask: frozenset({"submit"}),
    StatusLag404: frozenset({"submit", "result"}),
    Duplicate: frozenset({"webhook"}),
    Enveloped: frozenset({"webhook"}),
    Unwrapped: _ANSWERS,
    DataList: _ANSWERS,
    DataItems: frozenset({"models"}),
    **{shape: frozenset({"submit", "result", "list"}) for shape in _SHAPES},
}
_WEBHOOK_KINDS: Final = (Drop, Delay, Duplicate, Enveloped)


@attrs.frozen
class Call:
    """One exchange, as a rule's `when` sees it.

    Attributes:
        route: name of the route.
        method: HTTP method.
        path: the path without query.
        persona: `wavespeed` or `gptproto`.
        body: the JSON object of the request; empty when there is none.
    """

    route: str
    method: str
    path: str
    persona: str
    body: Mapping[str, object]


@attrs.define(eq=False)
class Rule:
    """A scripted fault and how far it has been used up.

    Attributes:
        route: name of the route, or `"*"`.
        fault: what happens.
        times: how many exchanges it hits; None means every one.
        after: how many matching exchanges pass before the first, those that other rules hit among them.
        when: which exchanges match; None means all. It makes the request be read first, even for `Drop`.
        seen: matching exchanges so far.
        hits: exchanges it hit so far.
    """

    route: str
    fault: Fault
    times: int | None = 1
    after: int = 0
    when: Callable[[Call], bool] | None = None
    seen: int = 0
    hits: int = 0

    @property
    def spent(self) -> bool:
        """Whether it will hit nothing more."""
        return self.times is not None and self.hits >= self.times

    def hit(self, call: Call, *, free: bool = True) -> bool:
        """Whether it hits this exchange; counts it.

        Args:
            call: the exchange.
            free: whether no earlier rule took it; one that is taken still counts towards `after`.
        """
        if self.spent or self.route not in {"*", call.route} or (self.route == "*" and call.route == "webhook"):
            return False
        if self.when is not None and not self.when(call):
            return False
        self.seen += 1
        if self.seen <= self.after or not free:
            return False
        self.hits += 1
        return True


_F = TypeVar("_F")


class Faults:
    """The script: rules in the order they were added."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, spent ones among them."""
        return tuple(self._rules)

    def add(
        self,
        route: str,
        fault: Fault,
        *,
        times: int | None = 1,
        after: int = 0,
        when: Callable[[Call], bool] | None = None,
    ) -> Rule:
        """Add a rule.

        Args:
            route: one of `ROUTES`, or `"*"`.
            fault: what shall happen.
            times: how many exchanges are hit; None means every one from then on.
            after: how many matching exchanges pass before the first is hit.
            when: a predicate over the exchange.

        Returns:
            The rule; its `hits` tells what became of it.

        Raises:
            ValueError: when there is no such route, or the fault makes no sense there.
        """
        if route != "*" and route not in ROUTES:
            raise ValueError(f"no route {route!r}; there are {', '.join(sorted(ROUTES))} and *")
        places = _PLACES.get(type(fault))
        if (places is not None and route not in places) or (
            route == "webhook" and not isinstance(fault, _WEBHOOK_KINDS)
        ):
            raise ValueError(f"{type(fault).__name__} means nothing on route {route!r}")
        rule = Rule(route, fault, times, after, when)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove every rule."""
        self._rules.clear()

    def reads_first(self, route: str) -> bool:
        """Whether a rule for that route wants to see the body."""
        return any(rule.when is not None and rule.route in {"*", route} and not rule.spent for rule in self._rules)

    def armed(self, route: str) -> bool:
        """Whether anything may still hit that route."""
        return any(rule.route in {"*", route} and not rule.spent for rule in self._rules)

    def take(self, call: Call) -> tuple[Fault, ...]:
        """What happens to this exchange: any delays, and at most one other fault."""
        taken: list[Fault] = []
        main = False
        for rule in self._rules:
            late = isinstance(rule.fault, _SHAPES) and call.route != "submit"
            delay = isinstance(rule.fault, Delay)
            if not late and rule.hit(call, free=delay or not main):
                taken.append(rule.fault)
                main = main or not delay
        return tuple(taken)

    def take_shape(self, call: Call, *, completed: bool) -> Shape | None:
        """How the result in this answer is bent, if it is."""
        for rule in self._rules:
            fault = rule.fault
            fits = isinstance(fault, UnknownStatus) or (completed and isinstance(fault, _SHAPES))
            if fits and isinstance(fault, _SHAPES) and rule.hit(call):
                return fault
        return None


def first(faults: tuple[Fault, ...], kind: type[_F]) -> _F | None:
    """The first fault of that kind, if there is one."""
    for fault in faults:
        if isinstance(fault, kind):
            return fault
    return None


def shape_of(faults: tuple[Fault, ...]) -> Shape | None:
    """The first deviation of a result, if there is one."""
    for fault in faults:
        if isinstance(fault, _SHAPES):
            return fault
    return None


def build(kind: str, arguments: Mapping[str, object]) -> Fault:
    """A fault from its class name and its arguments, as a script in another process names them.

    Raises:
        ValueError: when there is no such kind, or the arguments do not fit.
    """
    cls = _BY_NAME.get(kind)
    if cls is None:
        raise ValueError(f"no fault {kind!r}; there are {', '.join(_BY_NAME)}")
    fields = attrs.fields_dict(cls)
    for name, value in arguments.items():
        if name not in fields:
            raise ValueError(f"{kind} has no {name!r}; it has {', '.join(fields) or 'no fields'}")
        words = set(re.findall(r"\w+", str(fields[name].type)))
        if not any(type(value) in types for word, types in _JSON_TYPES.items() if word in words):
            raise ValueError(f"{name} of {kind} is {fields[name].type}, not {value!r}")
    make = cast("Callable[..., Fault]", cls)
    try:
        return make(**arguments)
    except TypeError as error:
        raise ValueError(str(error)) from None
