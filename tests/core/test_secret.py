"""A key shows itself only when it is asked to."""

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
def test_only_reveal_gives_the_key() -> None:
    secret = Secret(f"  {KEY}\n")
    assert secret.reveal() == KEY
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", f"{[secret]}"):
        assert "***" in shown
        assert KEY not in shown


def test_a_key_does_not_leave_by_pickling_or_by_its_attributes() -> None:
    secret = Secret(KEY)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="a secret is not pickled"):
            leave(secret)
    with pytest.raises(TypeError):
        vars(secret)


@pytest.mark.parametrize("value", ["", "   ", "two words", "new\nline", "bell\a", "schlüssel", "\u200bwsk_1", "a\x00b"])
def test_what_no_key_looks_like_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Secret(value)
    assert not value.strip() or value.strip() not in str(caught.value)


@given(keys, st.text(), st.text())
def test_a_reply_that_quotes_the_key_is_redacted(key: str, before: str, after: str) -> None:
    body = (before + key + after).encode("utf-8", "replace")
    assert key.encode() not in Secret(key).redact(body).replace(b"***", b"\n")


@given(keys)
def test_a_key_in_json_is_redacted_however_it_is_escaped(key: str) -> None:
    secret = Secret(key)
    by_number = "".join(sign if sign.isalnum() else f"\\u{ord(sign):04X}" for sign in key)
    quoted = json.dumps({"message": key})
    for body in (quoted, quoted.replace("/", "\\/"), f'{{"message": "{by_number}"}}'):
        assert json.loads(body) == {"message": key}
        assert json.loads(secret.redact(body.encode())) == {"message": "***"}


def test_what_does_not_quote_the_key_stays_as_it_is() -> None:
    body = json.dumps({"message": "Unauthorized", "key": KEY[:-1]}).encode()
    assert Secret(KEY).redact(body) == body
