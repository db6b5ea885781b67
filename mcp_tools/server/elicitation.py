"""A confirmation → MCP's elicitation and back, for both eras of the protocol.

Up to 2025-11-25 the server asks while the call waits; in 2026-07-28 the question is the answer to
the call, and the client sends the call again with the reply. What counts as a yes is the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcp_tools.confirmation.channels import Answer, Reply
from mcp_tools.confirmation.question import question_text
from mcp_tools.server.progress import Progress
from mcp_tools.types import Confirmation

logger = logging.getLogger(__name__)

CHANNEL: Final = "elicitation"
ANSWER_KEY: Final = "confirm"
"""Names our one question among a 2026-07-28 client's `inputResponses`."""

KEEP_ALIVE_S: Final = 10.0
"""Some clients give a call up when they hear nothing of it; progress resets their clock."""
TOO_FAST_S: Final = 0.05
"""No person reads a question and declines it in this time."""

_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "approve": {
            "type": "boolean",
            "title": "Allow this call",
            "description": "Yes lets exactly this call run, once. Anything else refuses it.",
        }
    },
    "required": ["approve"],
}


class Elicitation:
    """The question channel of one request.

    Args:
        ctx: The request.
        progress: Kept moving while a person thinks, where the client wants progress.
        timeout_s: Seconds a person has.
        asked_by: Who calls, for the question.
    """

    def __init__(
        self,
        ctx: ServerRequestContext[Any, Any],
        progress: Progress,
        *,
        timeout_s: float,
        asked_by: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ctx = ctx
        self._progress = progress
        self._timeout_s = timeout_s
        self._asked_by = asked_by
        self._clock = clock

    @property
    def name(self) -> str:
        """What is recorded as the channel of a yes."""
        return CHANNEL

    def unreachable(self, question: Confirmation) -> Answer | None:
        """Return the refusal where this client cannot show a form, else None."""
        declared = self._ctx.session.client_capabilities
        elicitation = None if declared is None else declared.elicitation
        if elicitation is None:
            return _nobody("this client cannot ask one (it declares no elicitation)", question)
        if elicitation.form is None and elicitation.url is not None:
            why = "this client cannot ask one (it declares elicitation by URL only, not by form)"
            return _nobody(why, question)
        return None

    def request(self, question: Confirmation) -> types.ElicitRequest:
        """Return the question as the protocol has it."""
        return types.ElicitRequest(
            params=types.ElicitRequestFormParams(
                message=question_text(question, asked_by=self._asked_by), requested_schema=_SCHEMA
            )
        )

    async def ask(self, question: Confirmation) -> Answer:
        """Ask over the connection and wait, as clients up to 2025-11-25 expect it.

        Returns:
            A yes only for an accepted form whose `approve` is the boolean true.
        """
        refusal = self.unreachable(question)
        if refusal is None and not self._ctx.session.can_send_request:
            why = "this connection has no way back to the client"
            refusal = _nobody(why, question)
        if refusal is not None:
            return refusal
        if not self._progress.is_wanted:
            return await self._ask(question)
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_alive)
            answer = await self._ask(question)
            group.cancel_scope.cancel()
        return answer

    async def _ask(self, question: Confirmation) -> Answer:
        asked_at = self._clock()
        message = question_text(question, asked_by=self._asked_by)
        limit_s = min(self._timeout_s, question.expires_in_s)
        with anyio.move_on_after(limit_s):
            try:
                reply = await self._ctx.session.elicit_form(
                    message, _SCHEMA, related_request_id=self._ctx.request_id
                )
            except MCPError as error:
                if error.error.code == types.CONNECTION_CLOSED:
                    return Answer(Reply.GONE, _sentence("the connection closed before an answer came"))
                return unusable("the client answered the question with an error")
            except ValidationError:
                return unusable("the client's answer is not one that the protocol knows")
            except Exception as error:
                # Whatever went wrong, it was not a yes.
                logger.warning("elicitation failed: %s", type(error).__name__)
                return unusable("the question could not be asked")
            took_s = self._clock() - asked_at
            return judge(reply, took_s, question)
        return too_late(limit_s)

    async def _keep_alive(self) -> None:
        while True:
            await self._progress.tick("waiting for a person to confirm")
            await anyio.sleep(KEEP_ALIVE_S)


def judge(reply: object, took_s: float | None = None, question: Confirmation | None = None) -> Answer:
    """Decide what a reply means. Only an accepted form with the boolean true is a yes.

    Args:
        reply: What the client sent.
        took_s: Seconds since it was asked; None where that is not known.
        question: What was asked, for advice; None where it is not at hand.
    """
    if not isinstance(reply, types.ElicitResult):
        return unusable("the client's answer is not an answer to the question")
    match reply.action:
        case "accept":
            approve = (reply.content or {}).get("approve")
            if approve is True:
                return Answer(Reply.APPROVED)
            if approve is False:
                return Answer(Reply.DECLINED, _sentence("a person said no"))
            return unusable("the form came back without a clear yes")
        case "cancel":
            return Answer(Reply.DISMISSED, _sentence("the question was closed without an answer"))
        case "decline":
            if took_s is not None and took_s < TOO_FAST_S:
                why = (
                    f"the client declined after {took_s * 1000:.0f} ms, so it has probably shown the "
                    "question to nobody"
                )
                advice = "" if question is None else f" {remedies(question)}"
                return Answer(Reply.DECLINED, _sentence(why) + advice)
            return Answer(Reply.DECLINED, _sentence("a person said no"))


def unusable(why: str) -> Answer:
    """Make the refusal for a reply that is neither a yes nor a no."""
    return Answer(Reply.UNUSABLE, _sentence(why))


def too_late(limit_s: float) -> Answer:
    """Make the refusal for a person who did not answer in time."""
    why = f"nobody answered within {limit_s:g} s"
    return Answer(
        Reply.NO_ANSWER,
        f"{why}; nothing was done. Call again only if the person is there to answer.",
    )


def remedies(question: Confirmation) -> str:
    """Say what a person can do so that such a call can run."""
    name = question.tool_name
    ways = [f"run this one with `mcp-tools call {name}`", "use a client that has elicitation"]
    if not question.can_be_allowed:
        return f"No rule can allow it beforehand ({question.reason}). A person can {' or '.join(ways)}."
    rule = f"{name}(notes/**)" if isinstance(question.parameters.get("path"), str) else name
    allow = f'allow such calls in the server\'s configuration with a rule, for example allow = ["{rule}"]'
    return f"A person can {'; or '.join([allow, *ways])}."


def _nobody(why: str, question: Confirmation) -> Answer:
    text = (
        f"{question.tool_name} needs a person's yes ({question.reason}), and {why}; nothing was done. "
        f"Retrying will not help. {remedies(question)}"
    )
    return Answer(Reply.NOBODY, text)


def _sentence(why: str) -> str:
    return f"{why}; nothing was done. Do not call it again unless the person asks for it."
