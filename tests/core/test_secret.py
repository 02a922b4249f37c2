"""Secrets hide the API key and redact replies."""

from __future__ import annotations

import copy
import json
import pickle
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import ConfigurationError
from kling_async._core.secret import Secret

KEY = "wsk_0123456789abcdef"
keys = st.text(alphabet=string.ascii_letters + string.digits + string.punctuation, min_size=8)


@pytest.mark.promise(8)
def test_only_reveal_returns_the_key() -> None:
    secret = Secret(f"  {KEY}\n")
    assert secret.reveal() == KEY
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", f"{[secret]}"):
        assert "***" in shown
        assert KEY not in shown


def test_secret_refuses_pickling_copying_and_vars() -> None:
    secret = Secret(KEY)
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="Secret cannot be pickled or copied"):
            copier(secret)
    with pytest.raises(TypeError):
        vars(secret)


@pytest.mark.parametrize("value", ["", "   ", "two words", "new\nline", "bell\a", "schlüssel", "\u200bwsk_1", "a\x00b"])
def test_bad_key_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Secret(value)
    assert not value.strip() or value.strip() not in str(caught.value)


@given(keys, st.text(), st.text())
def test_redact_removes_quoted_key(key: str, before: str, after: str) -> None:
    body = (before + key + after).encode("utf-8", "replace")
    assert key.encode() not in Secret(key).redact(body).replace(b"***", b"\n")


@given(keys)
def test_redact_removes_escaped_key_in_json(key: str) -> None:
    secret = Secret(key)
    by_number = "".join(f"\\u{ord(sign):04X}" for sign in key)
    quoted = json.dumps({"message": key})
    for body in (quoted, quoted.replace("/", "\\/"), f'{{"message": "{by_number}"}}'):
        assert json.loads(body) == {"message": key}
        assert json.loads(secret.redact(body.encode())) == {"message": "***"}
        assert secret.redact_json(body.encode(), json.loads(body)) == {"message": "***"}


@given(keys)
def test_redact_json_removes_key_from_texts_and_names(key: str) -> None:
    value = {key: [{"a": f"<{key}>"}, 7, None], "quoted again": json.dumps({"key": key}), "other": "\ud800"}
    body = json.dumps(value).encode()
    redacted = Secret(key).redact_json(body, json.loads(body))
    expected = {"***": [{"a": "<***>"}, 7, None], "quoted again": '{"key": "***"}', "other": "\ud800"}
    assert redacted == expected


def test_short_key_is_a_placeholder_and_not_redacted() -> None:
    body = b'{"id": "a-1"}'
    assert Secret("-").redact(body) == body
    assert Secret("-").redact_json(body, {"id": "a-1"}) == {"id": "a-1"}


def test_redact_keeps_other_bodies() -> None:
    body = json.dumps({"message": "Unauthorized", "key": KEY[:-1]}).encode()
    assert Secret(KEY).redact(body) == body
