"""Every error of the package, and whose move is next.

McpToolsError
├── RegistrationError (ValueError)   the developer's: raised while tools are registered
│   ├── DuplicateTool                the name is taken
│   ├── InvalidToolName              clients would refuse it
│   ├── InvalidSchema                not a JSON Schema we can publish and enforce
│   └── SignatureMismatch            the function cannot take its schema's fields
├── ConfigError (ValueError)         the owner's: raised at start, nothing is served
├── ToolError                        the model's: a tool raises it with text written for the model
├── InvalidArguments                 the model's: what it sent does not fit the schema
└── DuplicateCallId (ValueError)     the embedding program's: two calls of a batch share an id

A tool call never raises these to its caller: `ToolExecutor.execute` turns each into a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class McpToolsError(Exception):
    """Base of everything this package raises on purpose."""


class RegistrationError(McpToolsError, ValueError):
    """A tool cannot be registered. The registry is unchanged."""


class DuplicateTool(RegistrationError):
    """The name is taken, case and compatibility forms ignored."""

    def __init__(self, name: str, *, taken_by: str, source: str) -> None:
        where = f" (registered in {source})" if source else ""
        super().__init__(f"tool name {name!r} is taken by {taken_by!r}{where}; choose another name")
        self.name = name


class InvalidToolName(RegistrationError):
    """The name is not one that every client accepts."""

    def __init__(self, name: object) -> None:
        super().__init__(f"{name!r} is not a tool name; use 1 to 64 letters, digits, '_' or '-' (ASCII)")
        self.name = name


class InvalidSchema(RegistrationError):
    """The schema cannot be published or enforced."""

    def __init__(self, tool_name: str, problem: str) -> None:
        super().__init__(f"tool {tool_name!r}: {problem}")
        self.tool_name = tool_name


class SignatureMismatch(RegistrationError):
    """The function cannot take the fields of its schema by name."""

    def __init__(self, tool_name: str, problem: str) -> None:
        super().__init__(f"tool {tool_name!r}: {problem}")
        self.tool_name = tool_name


class ConfigError(McpToolsError, ValueError):
    """A setting is wrong. The text names the setting, where it came from and what is allowed."""


class ToolError(McpToolsError):
    """A tool's own refusal, with text written for the model; it reaches the model as it is.

    Args:
        message: For the model: what failed, and what to do next.
        is_passing: The same call may succeed a little later: we make it again for a tool that was
            registered with `retries`.
        retry_after_s: Not before this many seconds; the caller is told, too. None: nothing is known.
    """

    def __init__(
        self, *message: object, is_passing: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(*message)
        self.is_passing = is_passing
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one argument. `path` is dotted (`edits.0.oldText`); empty for the whole."""

    path: str
    problem: str


class InvalidArguments(McpToolsError):
    """The arguments do not fit the tool's schema. Each error names its field and what is allowed."""

    def __init__(self, tool_name: str, errors: Sequence[FieldError]) -> None:
        lines = [f"{error.path}: {error.problem}" if error.path else error.problem for error in errors]
        super().__init__(f"invalid arguments for {tool_name}: " + "; ".join(lines))
        self.tool_name = tool_name
        self.errors = tuple(errors)


class DuplicateCallId(McpToolsError, ValueError):
    """Two calls of one batch share an id, so their results could not be told apart. None was run."""

    def __init__(self, call_id: str) -> None:
        super().__init__(f"call id {call_id!r} appears twice in one batch; give each call its own id")
        self.call_id = call_id


def key_problem(name: str, key: str) -> str | None:
    """Say what is wrong with a key that could not even be sent, such as one with a line break.

    Args:
        name: Where the key comes from. The answer holds it, and nothing of the key.
    """
    if key.isascii() and key.isprintable() and " " not in key:
        return None
    return f"{name} holds characters that no key has; was it copied whole?"
