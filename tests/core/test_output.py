"""Anything a tool returns becomes valid, encodable text; what breaks leaves no secrets behind."""

from __future__ import annotations

import datetime
import enum
import json
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from mcp_tools import (
    ExecutionResult,
    ExecutionStatus,
    MediaContent,
    ResourceLink,
    TextContent,
    ToolOutput,
)
from mcp_tools.output.masking import MASK, describe_exception, mask_secrets, shorten
from mcp_tools.output.plain import encodable, to_json, to_plain


@dataclass
class Point:
    x: int
    label: str = "p"


class Model(BaseModel):
    when: datetime.date
    points: list[Point] = []


class Colour(enum.Enum):
    RED = "red"


class ReprRaises:
    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


class DumpRaises(BaseModel):
    def model_dump(self, **_: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("broken model")


def circle() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Point(1), {"x": 1, "label": "p"}),
        (
            Model(when=datetime.date(2026, 1, 2), points=[Point(1)]),
            {"when": "2026-01-02", "points": [{"x": 1, "label": "p"}]},
        ),
        (Colour.RED, "red"),
        (b"\xff\x00", {"base64": "/wA=", "size_bytes": 2}),
        ({"n": math.nan, "i": -math.inf}, {"n": "nan", "i": "-inf"}),
        ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "None": "b", "(1, 2)": "c"}),
        ({"s": {1}}, {"s": [1]}),
        ((1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (Decimal("1.50"), "1.50"),
        (PurePosixPath("a/b"), "a/b"),
        (datetime.timedelta(seconds=1.5), 1.5),
        ("\ud800x", "\\ud800x"),
        ({"\udc80": "\udfff"}, {"\\udc80": "\\udfff"}),
        (circle(), ["<contains itself>"]),
        (ValueError("bad"), "ValueError: bad"),
        (ReprRaises(), "<ReprRaises that cannot be printed>"),
        (10**400, 10**400),
        (None, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_become_plain_data(value: Any, plain: Any) -> None:
    """ACCEPTANCE B-29."""
    assert to_plain(value) == plain
    assert json.loads(to_json(value)) == plain


def test_depth_and_broken_models_are_named_not_raised() -> None:
    assert "levels deep" in to_json(nested(5_000))
    assert "DumpRaises" in to_json(DumpRaises())
    assert len(to_json(object)) < 100


def test_endless_results_end() -> None:
    plain = to_plain({"numbers": range(10**12), "after": 1})
    assert plain["numbers"][:2] == [0, 1]
    assert "more than 1,000,000 values" in plain["numbers"][-1]
    assert len(plain["numbers"]) <= 1_000_001


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=())) | st.integers(), inner)
    ),
)


@given(ANYTHING)
def test_every_result_is_valid_encodable_json(value: Any) -> None:
    json.loads(to_json(value).encode().decode())
    ExecutionResult(ExecutionStatus.SUCCESS, value).to_observation().encode()


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (ExecutionResult(ExecutionStatus.SUCCESS, "as it is\r\n"), "as it is\r\n"),
        (ExecutionResult(ExecutionStatus.SUCCESS, {"a": [1]}), '{\n  "a": [\n    1\n  ]\n}'),
        (ExecutionResult(ExecutionStatus.SUCCESS, None), "null"),
        (ExecutionResult(ExecutionStatus.SUCCESS, "Grüße 🙂"), "Grüße 🙂"),
        (ExecutionResult(ExecutionStatus.TIMEOUT, error="stopped"), "Error (timeout): stopped"),
        (
            ExecutionResult(
                ExecutionStatus.SUCCESS,
                ToolOutput(
                    content=[
                        TextContent(text="found"),
                        MediaContent(data=b"123", media_type="image/png"),
                        ResourceLink(uri="x://y", name="rest"),
                    ]
                ),
            ),
            "found\n[image/png, 3 bytes]\n[rest: x://y]",
        ),
        (ExecutionResult(ExecutionStatus.SUCCESS, ToolOutput(structured={"n": 1})), '{\n  "n": 1\n}'),
    ],
    ids=["string", "data", "none", "unicode", "failure", "pieces", "structured"],
)
def test_observations(result: ExecutionResult, text: str) -> None:
    assert result.to_observation() == text


SECRETS = [
    "sk-proj-abcdefghijklmnop1234567890",
    "sk-ant-api03-abcdefghijklmnop1234567890",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "AKIAIOSFODNN7EXAMPLE",
    "xoxb-1234567890-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret[:8])
def test_secrets_are_masked_wherever_they_stand(secret: str) -> None:
    assert mask_secrets(f"cannot use {secret}!") == f"cannot use {MASK}!"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password=hunter22 next", f"password={MASK} next"),
        ('{"api_key": "abcdef"}', f'{{"api_key": "{MASK}"}}'),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {MASK}"),
        ("postgres://me:pass@host/db", f"postgres://me:{MASK}@host/db"),
        ("the token bucket is empty", "the token bucket is empty"),
        ("No such file or directory: 'notes/secret.txt'", "No such file or directory: 'notes/secret.txt'"),
    ],
)
def test_named_values_are_masked_and_prose_is_not(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked


S = "Zq8vK2mN4pR7sT9w"


@pytest.mark.parametrize(
    "text",
    [
        *(f"Authorization: {scheme} {S}" for scheme in ("Token", "Digest", "Bearer", "Basic", "Unheard")),
        *(f"{name}={S}" for name in ("passphrase", "credential", "private_key", "pwd", "DB_PASS", "userPin")),
        *(
            f"{name} = '{S}'"
            for name in ("jwt", "ssh_key", "access_tokens", "refreshTokens", "password: str")
        ),
        f"Cookie: session={S}; other={S}",
        f"mysql --password {S} -h db",
        f'["--token", "{S}"]',
        f'[{{"name": "Authorization", "value": "{S}"}}]',
        f'[{{"value": "{S}", "key": "DB_PASS"}}]',
        f"- name: DB_PASS\n  value: {S}",
        f"https://{S}@host/x",
        f"https://user:{S}@host/x",
        f"postgres://u:{S}/x@h/db",
        f'password="a b{S}"',
        f"password=abc,{S}",
        f'{{\\"password\\": \\"{S}\\"}}',
        f"curl -u admin:{S} https://x",
        f"glpat-{S}abcd",
        f"hf_{S}{S}",
        f"npm_{S}{S}",
        f"SG.{S}.{S}",
    ],
)
def test_no_known_form_of_a_secret_stays(text: str) -> None:
    masked = mask_secrets(text)
    assert S not in masked
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize(
    "line",
    [
        "max_tokens=4096, tokens: 1200, token_count = 8192",
        "passenger: Alice, compass: north, author: Robert, pinned: always",
        "PASS: tests/test_login.py",
        "use the --token option to log in",
        "def login(self, password: str, token: Optional[str] = None) -> bool:",
        "password = get_password(user)",
        "api_key=settings.api_key",
        "let token = Token::new();",
        "password: ${DB_PASSWORD}",
        "credentials: include",
        "http://localhost:8080/@scope/package",
        "ssh://git@example.com/repo.git",
        "2026-11-22T12:01:01Z INFO status=200 request_id=9f00000001 user=alice",
        "the first pass: 12 files; second pass: 30 files",
    ],
)
def test_innocent_lines_stay(line: str) -> None:
    assert mask_secrets(line) == line


@pytest.mark.parametrize(
    "piece", ["token=", '":', "://a:", "sk-a-", 'token="', '\\"', "--token ", "-----BEGIN PRIVATE KEY-----"]
)
def test_no_text_makes_masking_slow(piece: str) -> None:
    began_s = time.process_time()
    mask_secrets(piece * (1_000_000 // len(piece)))
    assert time.process_time() - began_s < 10


def test_masking_a_long_message_is_bounded() -> None:
    """ACCEPTANCE A-28: no pattern here can be made to backtrack over a whole message."""
    for piece in ("token", "-", "a://", "sk-a-", "-----BEGIN PRIVATE KEY-----"):
        assert len(describe_exception(ValueError(piece * 400_000))) < 2_100


def test_shortening_says_what_it_left_out() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("a" * 50 + "b" * 50, 20) == "a" * 10 + " …[80 characters left out]… " + "b" * 10
    assert encodable("fine") == "fine"
