"""Reads the service's own formulas of prices: JSONata expressions over `base_price` and the inputs (docs: list-models).

A small part of JSONata is read: arithmetic, comparisons, `and`, `or`, conditions, objects and lists, and a few
functions of lists and numbers. Anything else makes the price unknown, as do inputs whose value the service alone knows.

Third parties have seen formulas with amounts in millionths of a USD beside a base price in USD, and others that round
in that unit. A formula is therefore evaluated in both units, and with both decimal and binary numbers: a price that
depends on the unit or on rounding is unknown.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar

import attrs

MAX_TOKENS: Final = 400
"""Most tokens of a formula; those of models have about a hundred."""
MAX_DEPTH: Final = 50
"""Most expressions inside each other."""
MAX_LIST_LENGTH: Final = 100
"""Most items of a list in the inputs; models take ten images at most."""
MAX_BASE_PRICE_USD: Final = 1000
"""No run costs as much: a greater base price is in another unit."""
_MILLIONTHS: Final = 1_000_000
_RELATIVE_TOLERANCE: Final = 1e-9
_FINEST_USD: Final = Decimal("1e-10")
"""Prices are rounded to it, since a division need not end; no service charges less."""

T = TypeVar("T")

Number: TypeAlias = Decimal | float
Value: TypeAlias = object
"""A number, text, boolean, list, mapping, or `None` for JSONata's undefined."""


class _UnreadableError(ValueError):
    """The formula is not in the part of JSONata that is read, or the price depends on what is not known."""


@attrs.frozen
class FormulaInput:
    """An input of a model, as a formula sees it.

    Attributes:
        name: Wire name.
        default: The service's default as JSON; None without one.
        absent: Whether the input is really absent when it is not given. The service may have a default of its own for
            flags, numbers and choices.
    """

    name: str
    default: object = attrs.field(default=None, hash=False)
    absent: bool = False


@attrs.frozen
class Formula:
    """The service's formula of a model's price.

    Attributes:
        text: The JSONata expression; empty for the base price.
        base_price: USD.
        inputs: The inputs of the model.
    """

    text: str
    base_price: Decimal
    inputs: tuple[FormulaInput, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Names of the inputs that the text contains, whether it can be read or not."""
        words = frozenset(re.findall(r"\w+", self.text))
        return frozenset(each.name for each in self.inputs if each.name in words)

    def price(self, given: Mapping[str, object]) -> Decimal | None:
        """Return the price of a run in USD; None if the formula does not tell it for certain.

        Args:
            given: Inputs by wire name, as JSON values; others have the service's defaults.
        """
        fields = self._fields(given)
        try:
            if not 0 <= self.base_price <= MAX_BASE_PRICE_USD:
                return None
            usd = Decimal(str(self._evaluated(fields, Decimal, 1)))
            others = [self._evaluated(fields, kind, unit) for kind, unit in _OTHER_WAYS]
            certain = all(math.isclose(usd, other, rel_tol=_RELATIVE_TOLERANCE) for other in others)
            usd = usd.quantize(_FINEST_USD)
        except (ValueError, ArithmeticError, RecursionError):
            return None
        return usd if certain and usd >= 0 else None

    def _evaluated(self, fields: Mapping[str, object], kind: type[Decimal | float], unit: int) -> Number:
        """Return the price in USD, computed with one kind of number, and with the base price in 1/`unit` USD.

        Raises:
            _UnreadableError: The price is unknown.
        """
        scope = _Scope({**fields, "base_price": self.base_price * unit}, kind)
        found = _parsed(self.text)(scope)
        if isinstance(found, Mapping):
            found = found.get("total_price")
        number = _number(found)
        if not math.isfinite(number):
            raise _UnreadableError("not finite")
        return number / kind(unit)  # type: ignore[operator]  # both are of this kind

    def _fields(self, given: Mapping[str, object]) -> dict[str, object]:
        """Return the values that the formula sees; an input with an unknown value is left out."""
        fields: dict[str, object] = {}
        for each in self.inputs:
            value = given.get(each.name)
            value = each.default if value is None else value
            if value is not None or each.absent:
                fields[each.name] = value
        return fields


_OTHER_WAYS: Final = ((Decimal, _MILLIONTHS), (float, 1), (float, _MILLIONTHS))


@attrs.frozen
class _Scope:
    """Fields and numbers that an expression is evaluated with.

    Attributes:
        fields: Values by name, as JSON; a name that is not among them has an unknown value.
        kind: Kind of the numbers.
    """

    fields: Mapping[str, object]
    kind: type[Decimal | float]

    def field(self, name: str) -> Value:
        """Return the value of a field.

        Raises:
            _UnreadableError: It is unknown.
        """
        if name not in self.fields:
            raise _UnreadableError(name)
        return self.value(self.fields[name])

    def value(self, json: object) -> Value:
        """Return a JSON value with its numbers in this kind."""
        if isinstance(json, list):
            if len(json) > MAX_LIST_LENGTH:
                raise _UnreadableError("a list is too long")
            return [self.value(item) for item in json]
        if isinstance(json, bool) or not isinstance(json, (int, float, Decimal)):
            return json
        return self.kind(str(json))


_Expression: TypeAlias = Callable[[_Scope], Value]


# ---- values ----


def _number(value: Value) -> Number:
    if isinstance(value, bool) or not isinstance(value, (Decimal, float)):
        raise _UnreadableError("not a number")
    return value


def _is_true(value: Value) -> bool:
    """Return a value as a boolean, by JSONata's rules."""
    if isinstance(value, list):
        return any(map(_is_true, value))
    return bool(value)


def _plain(value: Value) -> tuple[type, Value]:
    """Return a value that can be compared, with its kind: JSONata finds no number equal to a text or a boolean.

    Raises:
        _UnreadableError: It is a list or an object.
    """
    if isinstance(value, (bool, str)):
        return type(value), value
    return float, _number(value)


def _equal(left: Value, right: Value) -> bool:
    return _plain(left) == _plain(right)


# Both operands are of the same kind, which no type tells.
_ARITHMETIC: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
}
_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _binary(sign: str, left: Value, right: Value) -> Value:
    match sign:
        case "and":
            return _is_true(left) and _is_true(right)
        case "or":
            return _is_true(left) or _is_true(right)
        case "in":
            items = right if isinstance(right, list) else [right]
            return left is not None and any(_equal(left, item) for item in items if item is not None)
    if sign in {"=", "!="}:
        # Comparing with undefined is false, also for !=.
        return left is not None and right is not None and _equal(left, right) == (sign == "=")
    # Types are checked also where the other operand is undefined.
    one, other = (None if value is None else _number(value) for value in (left, right))
    if one is None or other is None:
        return None
    return (_ARITHMETIC.get(sign) or _ORDER[sign])(one, other)


def _items(value: Value) -> list[Value]:
    return value if isinstance(value, list) else [value]


def _least(values: Value) -> Value:
    return min(map(_number, _items(values)), default=None)


def _greatest(values: Value) -> Value:
    return max(map(_number, _items(values)), default=None)


def _total(values: Value) -> Value:
    first, *rest = map(_number, _items(values))
    return functools.reduce(_ARITHMETIC["+"], rest, first)


def _rounded(value: Value, mode: str) -> Number:
    number = _number(value)
    if isinstance(number, Decimal):
        return number.to_integral_value(mode)
    return float(math.ceil(number) if mode == ROUND_CEILING else math.floor(number))


def _length(value: Value) -> int:
    if not isinstance(value, str):
        raise _UnreadableError("not a text")
    return len(value)


def _item(mapping: Value, name: Value) -> Value:
    if not isinstance(mapping, Mapping) or not isinstance(name, str):
        raise _UnreadableError("not an object and a text")
    return mapping.get(name)


_FUNCTIONS: Final[Mapping[str, tuple[int, Callable[..., Value]]]] = {
    "$min": (1, _least),
    "$max": (1, _greatest),
    "$sum": (1, _total),
    "$ceil": (1, lambda value: _rounded(value, ROUND_CEILING)),
    "$floor": (1, lambda value: _rounded(value, ROUND_FLOOR)),
    "$length": (1, _length),
    "$not": (1, lambda value: not _is_true(value)),
    "$lookup": (2, _item),
}
"""Functions of which undefined makes undefined, with the number of their arguments."""


def _call(name: str, arguments: Sequence[Value]) -> Value:
    match name, arguments:
        case "$count", [value]:
            return 0 if value is None else len(_items(value))
        case "$exists", [value] if value != []:
            return value is not None
    count, function = _FUNCTIONS.get(name, (0, None))
    if function is None or len(arguments) != count:
        raise _UnreadableError(name)
    return None if None in arguments else function(*arguments)


# ---- syntax ----

_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<number>(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?(?![\w.]))
    |(?P<text>"[^"\\]*"|'[^'\\]*')
    |(?P<name>\$?[A-Za-z_][A-Za-z_0-9]*)
    |(?P<sign>!=|<=|>=|[-+*/=<>?:(),{}\[\]])
    )\s*""",
    re.VERBOSE | re.ASCII,
)
_BINDING: Final[Mapping[str, int]] = {
    "or": 1,
    "and": 2,
    **dict.fromkeys(("=", "!=", "<", "<=", ">", ">=", "in"), 3),
    **dict.fromkeys(("+", "-"), 4),
    **dict.fromkeys(("*", "/"), 5),
}
"""Binary operators by the strength with which they bind; all are left-associative."""
_NEGATION: Final = 6


@lru_cache(maxsize=1024)
def _parsed(text: str) -> _Expression:
    """Return the expression of a formula.

    Raises:
        _UnreadableError: It is not in the part of JSONata that is read.
    """
    tokens = list(itertools.islice(_tokens(text.strip() or "base_price"), MAX_TOKENS + 1))
    if len(tokens) > MAX_TOKENS:
        raise _UnreadableError("too long")
    return _Parser(tokens).whole()


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None or found.lastgroup is None:
            raise _UnreadableError(text[place:])
        yield found.lastgroup, found[found.lastgroup]
        place = found.end()
    yield "end", ""


class _Parser:
    """Recursive descent over the tokens of a formula, into functions that evaluate it.

    Args:
        tokens: Kind and text of every token; the last one is the end.
    """

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._texts = tokens
        self._place = 0
        self._depth = 0

    def whole(self) -> _Expression:
        """Return the expression of all tokens."""
        found = self._expression()
        if self._kind != "end":
            raise _UnreadableError(self._text)
        return found

    @property
    def _kind(self) -> str:
        return self._texts[self._place][0]

    @property
    def _text(self) -> str:
        return self._texts[self._place][1]

    def _next(self) -> str:
        text = self._text
        self._place += 1
        return text

    def _take(self, sign: str) -> bool:
        """Pass a sign if it is the current token."""
        found = self._kind == "sign" and self._text == sign
        self._place += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise _UnreadableError(self._text)

    def _expression(self, binding: int = 0) -> _Expression:
        """Return the expression that begins here, up to an operator that binds no stronger than `binding`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _UnreadableError("too deep")
        left = self._operand()
        while self._kind in {"sign", "name"} and _BINDING.get(self._text, 0) > binding:
            sign = self._next()
            left = _operation(sign, left, self._expression(_BINDING[sign]))
        if binding == 0 and self._take("?"):
            then = self._expression()
            left = _choice(left, then, self._expression() if self._take(":") else lambda _: None)
        self._depth -= 1
        return left

    def _operand(self) -> _Expression:
        match self._kind:
            case "number":
                number = self._next()
                return lambda scope: scope.kind(number)
            case "text":
                text = self._next()[1:-1]
                return lambda _: text
            case "name" if self._text not in _BINDING:
                return self._named(self._next())
        if self._take("-"):
            return _operation("-", lambda scope: scope.kind(0), self._expression(_NEGATION))
        if self._take("("):
            inner = self._expression()
            self._expect(")")
            return inner
        if self._take("["):
            return self._array()
        self._expect("{")
        return self._object()

    def _named(self, name: str) -> _Expression:
        if name in {"true", "false"}:
            return lambda _: name == "true"
        if not name.startswith("$"):
            return lambda scope: scope.field(name)
        self._expect("(")
        arguments = list(self._until(")", self._expression))
        return lambda scope: scope.value(_call(name, [argument(scope) for argument in arguments]))

    def _array(self) -> _Expression:
        items = list(self._until("]", lambda: (self._text == "[", self._expression())))

        def array(scope: _Scope) -> Value:
            found: list[Value] = []
            for nested, item in items:
                value = item(scope)
                # JSONata keeps lists that are written in a list, and inserts the items of others.
                found += [] if value is None else [value] if nested else _items(value)
            return found

        return array

    def _object(self) -> _Expression:
        def pair() -> tuple[_Expression, _Expression]:
            name = self._expression()
            self._expect(":")
            return name, self._expression()

        pairs = list(self._until("}", pair))

        def mapping(scope: _Scope) -> Value:
            found = {name(scope): value(scope) for name, value in pairs}
            if len(found) < len(pairs) or not all(isinstance(name, str) for name in found):
                raise _UnreadableError("names of an object")
            return found

        return mapping

    def _until(self, end: str, read: Callable[[], T]) -> Iterator[T]:
        """Yield what is read, separated by commas, up to a closing sign."""
        if self._take(end):
            return
        while True:
            yield read()
            if self._take(end):
                return
            self._expect(",")


def _operation(sign: str, left: _Expression, right: _Expression) -> _Expression:
    return lambda scope: _binary(sign, left(scope), right(scope))


def _choice(condition: _Expression, then: _Expression, otherwise: _Expression) -> _Expression:
    return lambda scope: (then if _is_true(condition(scope)) else otherwise)(scope)
