"""Accounts in a Redis server: processes on several machines share them.

One script of the server does all that belongs together, so nobody comes in between. What several calls
want goes out in one piece.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mcp_tools.errors import ConfigError
from mcp_tools.limits.clock import ReadClock, Witness, read_clock
from mcp_tools.limits.store import (
    KEEP_DAYS,
    MAX_ACCOUNTS,
    MAX_TOTALS_A_DAY,
    OTHERS,
    Grant,
    Refused,
    Take,
    Total,
)
from mcp_tools.limits.threaded import ReadTotals, ThreadedStore, Work
from mcp_tools.types import LimitsUnavailable, Usage

if TYPE_CHECKING:
    import redis

ANSWER_S: Final = 2.0
"""How long we wait for the server, to connect and for each answer."""
_SCHEMES: Final = ("redis://", "rediss://", "unix://")


def open_redis(
    url: str,
    *,
    prefix: str = "mcp_tools",
    clock: ReadClock = read_clock,
    server_clock: Callable[[], float] | None = None,
    max_accounts: int = MAX_ACCOUNTS,
) -> ThreadedStore:
    """Use a Redis server, of version 5 or newer. It is reached when the first call comes.

    Args:
        url: `redis://…`, `rediss://…` over TLS, or `unix://…`.
        prefix: What all our keys begin with. Who uses the same one shares the counts.
        clock: This machine's; it notices when the server's clock jumps.
        server_clock: Seconds since 1970, instead of the server's own; for tests.
        max_accounts: Of sessions, and as many of others.
    Raises:
        ConfigError: The URL cannot be read, or the package `redis` is not installed.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigError(
            "limits in Redis need the Python package 'redis', which is not installed"
        ) from error
    name = without_secrets(url)
    if not url.startswith(_SCHEMES):
        raise ConfigError(f"limits in {name}: the URL must begin with {', '.join(_SCHEMES)}")
    try:
        # Not again by itself: a call that was counted before its answer was lost would be counted twice.
        client = redis.Redis.from_url(
            url,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),
            client_name="mcp_tools",
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"limits in {name}: {error}") from error
    backend = _Redis(
        client, prefix=prefix, clock=clock, server_clock=server_clock, max_accounts=max_accounts, name=name
    )
    return ThreadedStore(backend, name=name)


class _Redis:
    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str,
        clock: ReadClock,
        server_clock: Callable[[], float] | None,
        max_accounts: int,
        name: str,
    ) -> None:
        self._client = client
        self._clock = clock
        self._witness = Witness(clock)
        self._server_clock = server_clock
        self._max_accounts = max_accounts
        self._name = name
        # Braces: a cluster keeps on one node what a script needs together.
        self._prefix = f"{{{prefix}}}:"
        self._script = resources.files("mcp_tools.limits").joinpath("accounts.lua").read_text()
        # Not for safety: it is how the server calls its scripts.
        self._digest = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()

    def run(self, work: Sequence[Work]) -> list[Any]:
        from redis.exceptions import RedisError

        asked = self._clock()
        try:
            found = self._sent(work)
        except (RedisError, OSError) as error:
            self._client.connection_pool.disconnect()
            raise self._unavailable(error) from error
        answers: list[Any] = []
        for each, raw in zip(work, found, strict=True):
            if isinstance(raw, Exception):
                answers.append(self._unavailable(raw))
                continue
            if not isinstance(each, ReadTotals):
                self._witness.saw(float(raw[0]), asked=asked)
            answers.append(_answer(each, raw))
        return answers

    def rest(self) -> None:
        """The server does what is to be done."""

    def close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()

    def _sent(self, work: Sequence[Work]) -> list[Any]:
        from redis.exceptions import NoScriptError

        expects = self._witness.expects()
        with self._client.pipeline(transaction=False) as pipe:
            for each in work:
                self._queue(pipe, each, expects)
            found = pipe.execute(raise_on_error=False)
        if any(isinstance(raw, NoScriptError) for raw in found):
            self._client.script_load(self._script)
            again = [index for index, raw in enumerate(found) if isinstance(raw, NoScriptError)]
            with self._client.pipeline(transaction=False) as pipe:
                for index in again:
                    self._queue(pipe, work[index], expects)
                for index, raw in zip(again, pipe.execute(raise_on_error=False), strict=True):
                    found[index] = raw
        return [
            self._totals(each.days) if isinstance(each, ReadTotals) else raw
            for each, raw in zip(work, found, strict=True)
        ]

    def _queue(self, pipe: Any, work: Work, expects: tuple[float, float] | None) -> None:
        if isinstance(work, ReadTotals):
            pipe.ping()
            return
        asks = [
            {
                "kind": ask.kind.value,
                "capacity": ask.capacity,
                "window_s": ask.window_s,
                "take": ask.take,
                "is_of_session": ask.is_of_session,
            }
            for ask in work.asks
        ]
        wanted: dict[str, Any] = {
            "op": "take" if isinstance(work, Take) else "settle",
            "call": work.call,
            "asks": asks,
            "max_accounts": self._max_accounts,
            "max_totals": MAX_TOTALS_A_DAY,
        }
        if self._server_clock is not None:
            wanted["wall"] = self._server_clock()
        if expects is not None:
            wanted["least"], wanted["most"] = expects
        day = "timeline"
        if isinstance(work, Take):
            wanted["lasts_s"] = work.lasts_s
        else:
            if work.used is not None:
                wanted["used"] = work.used
            if work.total is not None:
                day = f"totals:{work.total.day}"
                wanted["total"] = _total(work.total)
        names = ["timeline", "sessions", "others", "days", day]
        for ask in work.asks:
            names += [f"account:{ask.account}", f"estimate:{ask.estimate}"]
        keys = [self._prefix + name for name in names]
        pipe.evalsha(self._digest, len(keys), *keys, json.dumps(wanted))

    def _totals(self, days: int) -> list[Total]:
        found: Any = self._client.zrange(f"{self._prefix}days", -days, -1)
        totals = []
        for day in sorted(str(each, "utf-8") for each in found):
            fields: Any = self._client.hgetall(f"{self._prefix}totals:{day}")
            pairs: dict[str, dict[str, float]] = {}
            for field, value in fields.items():
                pair, _, unit = str(field, "utf-8").rpartition(" ")
                pairs.setdefault(pair, {})[unit] = float(value)
            for pair, units in sorted(pairs.items()):
                principal, tool = json.loads(pair)
                usage = Usage.bounded(
                    units.get("calls"),
                    units.get("cost_usd"),
                    units.get("sandbox_cpu_s"),
                    units.get("input_tokens"),
                    units.get("output_tokens"),
                )
                totals.append(Total(day=day, principal=principal, tool=tool, usage=usage))
        return totals

    def _unavailable(self, error: Exception) -> LimitsUnavailable:
        return LimitsUnavailable(f"the limits in {self._name} cannot be reached: {error}")


def _answer(work: Work, raw: Any) -> Any:
    if not isinstance(work, Take):
        return raw if isinstance(work, ReadTotals) else None
    left = tuple(float(each) for each in raw[3::2])
    if int(raw[1]):
        return Refused(index=int(raw[1]) - 1, wait_s=float(raw[2]), left=left)
    return Grant(left=left, reserved=tuple(float(each) for each in raw[4::2]))


def _total(total: Total) -> dict[str, Any]:
    usage = total.usage
    return {
        "day": total.day,
        "pair": json.dumps([total.principal, total.tool]),
        "others": json.dumps([OTHERS, OTHERS]),
        "keep_days": KEEP_DAYS,
        "usage": {
            "calls": usage.calls,
            "cost_usd": usage.cost_usd,
            "sandbox_cpu_s": usage.sandbox_cpu_s,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        },
    }


def without_secrets(url: str) -> str:
    """The URL without its user and password, for messages."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        return "Redis"
