"""Bearer tokens: whose they are, and which files are believed."""

from __future__ import annotations

import ast
import hmac
import os
from pathlib import Path

import pytest

from mcp_tools.errors import ConfigError
from mcp_tools.server import http
from mcp_tools.server.http import TokenTable, load_tokens, tokens

GOOD = "0123456789abcdef"
OTHER = "fedcba9876543210"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_names_its_principal() -> None:
    table = TokenTable([("alice", GOOD), ("bob", OTHER)])
    assert [table.principal_of(token.encode()) for token in (GOOD, OTHER, GOOD + "x")] == [
        "alice",
        "bob",
        None,
    ]


@pytest.mark.parametrize(
    "presented",
    [b"", b"\xff" * 40, "tökén-tökén-tökén".encode(), b"\x00", GOOD[:-1].encode(), b"x" * 1_000_000],
    ids=["empty", "not utf-8", "not ascii", "nul", "prefix", "huge"],
)
def test_a_wrong_token_is_nobody_and_never_raises(presented: bytes) -> None:
    """C-13."""
    assert TokenTable([("alice", GOOD)]).principal_of(presented) is None


def test_every_entry_is_compared_in_constant_time_also_after_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """C-14, without a clock: all entries are compared, each on equally long digests."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watched(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return real(left, right)

    names = [f"user{number}" for number in range(20)]
    table = TokenTable([(name, f"{name}-{GOOD}") for name in names])
    monkeypatch.setattr(tokens.hmac, "compare_digest", watched)
    for presented in (f"user0-{GOOD}", f"user19-{GOOD}", "x" + GOOD, GOOD[:8] + "x" * 40):
        compared.clear()
        table.principal_of(presented.encode())
        assert len(compared) == len(names)
        assert {len(side) for pair in compared for side in pair} == {32}
        assert all(type(side) is bytes for pair in compared for side in pair)


def test_tokens_are_compared_in_one_place_only() -> None:
    """C-13: nothing in the HTTP room compares tokens or digests with `==` or `in`."""
    tree = ast.parse(Path(tokens.__file__).read_text())
    secret = {"token", "digest", "presented", "variable"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            names = {
                n.id if isinstance(n, ast.Name) else n.attr
                for n in ast.walk(node)
                if isinstance(n, ast.Name | ast.Attribute)
            }
            is_length = any(isinstance(n, ast.Call) for n in ast.walk(node))
            assert is_length or not names & secret, ast.unparse(node)
    for path in Path(http.__file__).parent.glob("*.py"):
        if path.name != "tokens.py":
            assert "digest" not in path.read_text(), path.name


def test_a_file_and_the_variable_make_one_table(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", f"# who may call\n\nalice: {GOOD}\nbob:{OTHER}:with:colons\n")
    table = load_tokens(path, {"MCP_TOOLS_TOKEN": "x" * 32})
    assert table is not None
    assert table.names == ("alice", "bob", "default")
    assert table.principal_of(f"{OTHER}:with:colons".encode()) == "bob"


def test_no_source_is_no_table() -> None:
    assert load_tokens(None, {}) is None
    assert load_tokens(None, {"MCP_TOOLS_TOKEN": ""}) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"alice:{GOOD}\nalice:{OTHER}\n", "'alice' appears twice"),
        (f"alice:{GOOD}\nbob:{GOOD}\n", "'alice' and 'bob' have the same token"),
        ("alice:short\n", "shorter than 16"),
        (f"{GOOD}\n", "line 1: expected `name:token`"),
        (f"local:{GOOD}\n", "kept for callers without a token"),
        (f"a b:{GOOD}\n", "is not a name"),
        (f":{GOOD}\n", "is not a name"),
        ("alice:tökén-tökén-tökén-tökén\n", "other than visible ASCII"),
        ("# nobody\n", "no token in it"),
    ],
    ids=[
        "same name",
        "same token",
        "short",
        "bare token",
        "local",
        "odd name",
        "no name",
        "not ascii",
        "empty",
    ],
)
def test_a_doubtful_line_is_refused_without_repeating_a_token(
    tmp_path: Path, text: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tokens(write(tmp_path / "tokens", text))
    assert problem in str(caught.value)
    assert GOOD not in str(caught.value)
    assert OTHER not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666], ids=oct)
def test_a_file_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        load_tokens(write(tmp_path / "tokens", f"alice:{GOOD}\n", mode))


def test_only_a_regular_file_of_ours_is_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        load_tokens(fifo)
    with pytest.raises(ConfigError, match="No such file"):
        load_tokens(tmp_path / "missing")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_tokens("/dev/null")
    large = write(tmp_path / "large", "#" * 300_000)
    with pytest.raises(ConfigError, match="larger than"):
        load_tokens(large)
    binary = tmp_path / "binary"
    binary.write_bytes(b"alice:\xff\xfe\n")
    binary.chmod(0o600)
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_tokens(binary)


def test_a_table_does_not_show_tokens() -> None:
    assert repr(TokenTable([("alice", GOOD)])) == "TokenTable(alice)"
