"""`tool` or `tool(pattern)`, in three lists. Deny, then ask, then allow; the first list with a match decides.

A rule names a tool by a glob (`read_*`). Its pattern, if it has one, is a glob over what the call is
about: for file tools the path inside its root, for others every string among the arguments. `*`
stays within one folder, `**` crosses them, `?` is one character. A pattern that denies or asks
matches if it fits any of a call's subjects in any spelling; one that allows must fit every one of
them, and there must be at least one, so that a call about nothing is never allowed by a pattern.

A pattern that forbids a folder's content forbids the folder: `secret/**` denies and asks about
`secret` too, and so does `secret/`. It ignores case, since `.ENV` opens `.env` on some disks. Brackets
and braces would be read as literal characters, against what their owner meant, so they are refused
unless a backslash says that they are meant literally.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_tools.errors import ConfigError
from mcp_tools.policy.glob import Glob
from mcp_tools.types import CallContext, Decision, Ruling, Subject, Tool, default_ruling

_RULE = re.compile(r"(?P<tool>[A-Za-z0-9_*?-]{1,64})(?:\((?P<pattern>.*)\))?", re.DOTALL)
_MAX_RULE_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as its owner wrote it, ready to match."""

    text: str
    decision: Decision
    tool_pattern: Glob
    subject_pattern: Glob | None

    @classmethod
    def parse(cls, text: str, decision: Decision) -> Rule:
        """Read `tool` or `tool(pattern)`.

        Raises:
            ConfigError: The rule is not of this form, or its pattern could not mean what it says.
        """
        stripped = text.strip() if isinstance(text, str) else ""
        match = _RULE.fullmatch(stripped)
        if match is None or len(stripped) > _MAX_RULE_CHARS:
            raise ConfigError(
                f"{decision.name.lower()} rule {text!r} is not of the form 'tool' or 'tool(pattern)'"
            )
        pattern = match["pattern"]
        if pattern is not None and not pattern:
            raise ConfigError(f"{decision.name.lower()} rule {text!r} has an empty pattern; leave out '()'")
        if pattern is not None:
            pattern = _checked_pattern(pattern, decision)
        return cls(
            text=stripped,
            decision=decision,
            tool_pattern=Glob(match["tool"]),
            subject_pattern=None
            if pattern is None
            else Glob(pattern, ignore_case=decision is not Decision.ALLOW),
        )

    def matches(self, tool_name: str, subjects: Sequence[Subject]) -> bool:
        """Whether the rule speaks about a call of this tool with these subjects."""
        if not self.tool_pattern.matches(tool_name):
            return False
        if self.subject_pattern is None:
            return True
        fits = (self.fits(subject) for subject in subjects)
        return bool(subjects) and all(fits) if self.decision is Decision.ALLOW else any(fits)

    def fits(self, subject: Subject) -> bool:
        """Whether the pattern fits one thing, in one of its spellings."""
        pattern = self.subject_pattern
        if pattern is None:
            return True
        for spelling in (subject,) if isinstance(subject, str) else subject:
            if pattern.matches(spelling):
                return True
            if self.decision is not Decision.ALLOW and pattern.matches(f"{spelling}/"):
                return True
        return False


class RulePolicy:
    """Decides by three lists of rules; without a match a tool's own `requires_confirmation` decides."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        in_order = sorted(rules, key=lambda rule: -rule.decision)  # deny, ask, allow
        self.rules = tuple(in_order)

    @classmethod
    def parse(
        cls, *, deny: Iterable[str] = (), ask: Iterable[str] = (), allow: Iterable[str] = ()
    ) -> RulePolicy:
        """Read the three lists.

        Raises:
            ConfigError: A rule cannot be read; the text quotes it.
        """
        lists = ((deny, Decision.DENY), (ask, Decision.ASK), (allow, Decision.ALLOW))
        return cls(Rule.parse(text, decision) for texts, decision in lists for text in texts)

    def decide(self, tool: Tool, subjects: Sequence[Subject], context: CallContext) -> Ruling:
        """Return the decision of the first list with a match, and the rule that matched."""
        for rule in self.rules:
            if rule.matches(tool.name, subjects):
                return Ruling(
                    decision=rule.decision, reason=f"{rule.decision.name.lower()} rule {rule.text!r}"
                )
        return default_ruling(tool)

    def screen(self, tool: Tool) -> Callable[[Subject], Decision] | None:
        """Return what holds for one more thing; None where it is the same for all things."""
        rules = [rule for rule in self.rules if rule.tool_pattern.matches(tool.name)]
        if all(rule.subject_pattern is None for rule in rules):
            return None
        otherwise = default_ruling(tool).decision

        def judge(subject: Subject) -> Decision:
            return next((rule.decision for rule in rules if rule.fits(subject)), otherwise)

        return judge

    def hides(self, tool: Tool) -> bool:
        """Whether a deny rule without a pattern forbids every call of the tool."""
        return any(
            rule.decision is Decision.DENY
            and rule.subject_pattern is None
            and rule.tool_pattern.matches(tool.name)
            for rule in self.rules
        )


def _checked_pattern(pattern: str, decision: Decision) -> str:
    bare = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
    special = next((character for character in "[]{}" if character in bare), None)
    if special is not None:
        raise ConfigError(
            f"{decision.name.lower()} rule pattern {pattern!r}: {special!r} has no special meaning here; "
            f"write one rule for each case, or \\{special} for the character itself"
        )
    while pattern.startswith("./"):
        pattern = pattern[2:]
    if pattern.endswith("/") and decision is not Decision.ALLOW:
        pattern += "**"
    return pattern
