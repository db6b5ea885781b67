"""The ways to put a question to a person. A channel is an object, so that there can be more of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mcp_tools.types import Confirmation


class Reply(Enum):
    """What became of a question. Only `APPROVED` lets the call run."""

    APPROVED = "approved"
    DECLINED = "declined"  # a person said no
    DISMISSED = "dismissed"  # closed without an answer
    NO_ANSWER = "no answer"  # nobody replied in time
    GONE = "gone"  # whoever called went away before an answer came
    UNUSABLE = "unusable"  # a reply that is not a clear yes or no
    NOBODY = "nobody"  # this channel cannot reach a person


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and for every reply but a yes the text that tells the model what happened."""

    reply: Reply
    message: str = ""

    @property
    def is_yes(self) -> bool:
        """Whether the call may run."""
        return self.reply is Reply.APPROVED


class Channel(Protocol):
    """One way to reach a person. `name` is recorded with the call."""

    @property
    def name(self) -> str: ...

    async def ask(self, question: Confirmation) -> Answer:
        """Show the question and wait for the reply; bounded in time, raises nothing but cancellation."""
        ...
