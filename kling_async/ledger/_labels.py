"""Labels as conditions on the rows of a ledger: compared as texts, since a command line and a URL have no others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kling_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping


def scalar_labels(labels: str) -> list[tuple[str, str]]:
    """Return those labels of a job that can be looked for, with their values as texts.

    Args:
        labels: The labels as a JSON object.
    """
    return [(name, _text(value)) for name, value in json.loads(labels).items() if isinstance(value, (str, int, float))]


def label_text(labels: str | None, name: str) -> str | None:
    """Return the value of a label as a text; None for one that cannot be looked for.

    Args:
        labels: The labels of a job as a JSON object; None without any.
        name: Name of the label.
    """
    return None if labels is None else dict(scalar_labels(labels)).get(name)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def label_texts(labels: Mapping[object, object] | Mapping[str, object] | None) -> dict[str, str]:
    """Return the labels that rows must have, with their values as texts: `1742` is "1742", and True is "true".

    Raises:
        ConfigurationError: A name is no text, or a value is no text, number or truth value.
    """
    found: dict[str, str] = {}
    for name, value in (labels or {}).items():
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            raise ConfigurationError(
                f"labels: expected names with a text, a number or a truth value each, got {name!r:.40}: {value!r:.40}"
            )
        found[name] = _text(value)
    return found
