"""The one list of tools. Registration is loud: what could only fail later is refused here."""

from __future__ import annotations

import inspect
import logging
import math
import re
import secrets
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from mcp_tools.calling import Callee, Runnable
from mcp_tools.errors import DuplicateTool, InvalidSchema, InvalidToolName, RegistrationError
from mcp_tools.schema import (
    OutputShape,
    Parameters,
    check_same_fields,
    output_from_annotation,
    output_from_declaration,
    parameters_from_json_schema,
    parameters_from_model,
    parameters_from_signature,
    read_signature,
    summary,
)
from mcp_tools.types import DEFAULT_TIMEOUT_S, MAX_USAGE, Isolation, Provider, Tool, ToolAnnotations

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mcp_tools.validation import Validator

ENTRY_POINT_GROUP: Final = "mcp_tools.tools"
"""Another package's tools: its entry points name a `ToolRegistry`, or a function that takes one."""

MAX_RETRIES: Final = 10
SHORT_TIMEOUT_S: Final = 10.0
"""A deadline that is meant to be met, not only a backstop."""

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_Function = TypeVar("_Function", bound=Callable[..., Any])
_ParameterSource = Mapping[str, Any] | type["BaseModel"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredTool:
    """A tool with everything the executor needs, prepared once.

    `id` differs for each registration. `end` ends the processes that its function runs in; None: it has none.
    """

    tool: Tool
    validate: Validator
    run: Runnable
    end: Callable[[], None] | None
    preview: Callee | None
    must_ask: Callee | None
    subjects: Callee | None
    shape_output: OutputShape | None
    id: str


class ToolRegistry:
    """Holds tools by name, in the order they came.

    Names are unique also when case and compatibility forms are ignored, so that no tool can pass
    for another in a person's eyes.
    """

    def __init__(self) -> None:
        self._tools: dict[str, RegisteredTool] = {}
        self._names_by_key: dict[str, str] = {}
        self._listeners: list[Callable[[], None]] = []

    @overload
    def register(self, name: _Function, /) -> _Function: ...

    @overload
    def register(
        self,
        name: str | None = None,
        description: str | None = None,
        parameters: _ParameterSource = None,
        requires_confirmation: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
        tags: Sequence[str] | None = None,
        *,
        title: str | None = None,
        output_schema: Mapping[str, Any] | type[BaseModel] | None = None,
        annotations: ToolAnnotations | None = None,
        preview: Callable[..., Any] | None = None,
        must_ask: Callable[..., Any] | None = None,
        subjects: Callable[..., Any] | None = None,
        isolation: Isolation | None = None,
        price_usd: float = 0.0,
        retries: int = 0,
    ) -> Callable[[_Function], _Function]: ...

    def register(
        self,
        name: Any = None,
        description: str | None = None,
        parameters: _ParameterSource = None,
        requires_confirmation: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
        tags: Sequence[str] | None = None,
        *,
        title: str | None = None,
        output_schema: Mapping[str, Any] | type[BaseModel] | None = None,
        annotations: ToolAnnotations | None = None,
        preview: Callable[..., Any] | None = None,
        must_ask: Callable[..., Any] | None = None,
        subjects: Callable[..., Any] | None = None,
        isolation: Isolation | None = None,
        price_usd: float = 0.0,
        retries: int = 0,
    ) -> Any:
        """Register the decorated function, which is returned unchanged. Works bare and with arguments.

        Args:
            name: None: the function's own name.
            description: For the model. None: the docstring without its sections.
            parameters: A JSON Schema dict, a Pydantic model class whose fields the function takes
                by name, or None: read from the signature and the docstring's `Args:`.
            requires_confirmation: A person must say yes to each call.
            timeout: Seconds; `math.inf` means no deadline.
            tags: For `list_tools(tag=...)`.
            title, output_schema, annotations, preview, must_ask, subjects, isolation, price_usd,
                retries: See `Tool`. Without an `output_schema`, one is derived where the return
                annotation names a Pydantic model, a dataclass or a TypedDict.
        Raises:
            RegistrationError: Name taken or unusable, schema unusable, or the function cannot take
                the schema's fields. The registry is unchanged.
        """
        if callable(name):
            local_names = sys._getframe(1).f_locals
            self._register(name, Tool("", "", {}, name), None, None, local_names)
            return name
        # Annotations written as text may name what is local to the registering scope.
        local_names = sys._getframe(1).f_locals

        def decorate(function: _Function) -> _Function:
            draft = Tool(
                name=name or "",
                description=description or "",
                parameters={},
                function=function,
                requires_confirmation=requires_confirmation,
                timeout_seconds=timeout,
                tags=list(tags or ()),
                title=title,
                annotations=annotations or ToolAnnotations(),
                preview=preview,
                must_ask=must_ask,
                subjects=subjects,
                isolation=isolation,
                price_usd=price_usd,
                retries=retries,
            )
            self._register(function, draft, parameters, output_schema, local_names)
            return function

        return decorate

    def add(self, tool: Tool) -> Tool:
        """Register a ready-made `Tool`, whose `parameters` is a JSON Schema dict.

        Returns:
            The tool as registered (its own copy of the schema).
        Raises:
            RegistrationError: As for `register`.
        """
        return self._register(
            tool.function, tool, tool.parameters, tool.output_schema, sys._getframe(1).f_locals
        )

    def include(self, other: ToolRegistry) -> None:
        """Add every tool of another registry; all of them or, on a clash, none.

        Raises:
            DuplicateTool: A name is taken.
        """
        for entry in other._tools.values():
            self._refuse_duplicate(entry.tool.name)
        for entry in other._tools.values():
            self._tools[entry.tool.name] = entry
            self._names_by_key[_key(entry.tool.name)] = entry.tool.name
        self._changed()

    def remove(self, name: str) -> None:
        """Remove a tool. Calls that already run are not affected, unless they run in a process of the tool's.

        Raises:
            KeyError: There is no such tool.
        """
        entry = self._tools.pop(name)
        if entry.end is not None:
            entry.end()
        del self._names_by_key[_key(name)]
        self._changed()

    def get(self, name: str) -> Tool | None:
        """Return the tool of exactly this name, or None."""
        entry = self._tools.get(name)
        return entry.tool if entry is not None else None

    def find(self, name: str) -> RegisteredTool | None:
        """Return the tool with its prepared parts, as the executor needs it, or None."""
        return self._tools.get(name)

    def list_tools(self, tag: str | None = None) -> list[Tool]:
        """Return the tools, in the order of registration; with `tag`, those that carry it."""
        tools = [entry.tool for entry in self._tools.values()]
        return tools if tag is None else [tool for tool in tools if tag in tool.tags]

    def get_validator(self, name: str) -> Validator | None:
        """Return the function that turns arguments into validated values, or None if no such tool.

        It raises `InvalidArguments`, which names each field.
        """
        entry = self._tools.get(name)
        return entry.validate if entry is not None else None

    def to_api_format(self, provider: Provider | str = "anthropic") -> list[dict[str, Any]]:
        """Describe all tools as a provider's API wants them; see `Tool.to_api_format`."""
        if provider not in ("anthropic", "openai"):
            raise ValueError(f"unknown provider {provider!r}; use 'anthropic' or 'openai'")
        return [tool.to_api_format(provider) for tool in self.list_tools()]

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after tools were added or removed; the returned function ends that."""
        self._listeners.append(callback)

        def unsubscribe() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return unsubscribe

    def load_entry_points(self) -> list[str]:
        """Include the tools that installed packages offer under `mcp_tools.tools`.

        Returns:
            `package: entry point` for each one loaded, for the log.
        Raises:
            RegistrationError: One cannot be loaded; the text names the package. Earlier ones stay.
        """
        from importlib.metadata import entry_points

        loaded: list[str] = []
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name):
            origin = f"{point.dist.name if point.dist else 'unknown package'}: {point.name}"
            try:
                self.load(point.load())
            except Exception as error:
                raise RegistrationError(
                    f"entry point {origin} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
                ) from error
            loaded.append(origin)
        return loaded

    def load(self, source: Any) -> None:
        """Include tools from a `ToolRegistry`, an object with a `.registry` (a `ToolSystem`), or a
        function that takes this registry and registers on it.

        Raises:
            RegistrationError: It is none of these, or a tool cannot be registered.
        """
        registry = source if isinstance(source, ToolRegistry) else getattr(source, "registry", None)
        if isinstance(registry, ToolRegistry):
            self.include(registry)
        elif callable(source):
            source(self)
        else:
            raise RegistrationError(
                f"{type(source).__name__} holds no tools; give a ToolRegistry, a ToolSystem or a function "
                "that takes a ToolRegistry"
            )

    def close(self) -> None:
        """End the processes of tools that run in processes of their own; such tools fail from now on.

        Works once for each tool; the others are not affected. Can be called again.
        """
        for entry in tuple(self._tools.values()):
            if entry.end is not None:
                entry.end()

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def _register(
        self,
        function: Callable[..., Any],
        draft: Tool,
        source: _ParameterSource,
        declared_output: Mapping[str, Any] | type[BaseModel] | None,
        local_names: Mapping[str, Any],
    ) -> Tool:
        name = draft.name or getattr(function, "__name__", "")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidToolName(name)
        self._refuse_duplicate(name)
        _check_text(name, draft.title, draft.description, inspect.getdoc(function))
        _check_timeout(name, draft.timeout_seconds)
        _check_numbers(name, draft)
        signature = read_signature(name, function, local_names)
        docstring = inspect.getdoc(function) or ""
        parameters = _parameters(name, source, signature, docstring)

        output: tuple[dict[str, Any], OutputShape] | None
        if declared_output is not None:
            output = output_from_declaration(name, declared_output)
        else:
            output = output_from_annotation(signature.returns)
        tool = replace(
            draft,
            name=name,
            description=draft.description or summary(docstring),
            parameters=parameters.schema,
            output_schema=output[0] if output else None,
            tags=list(draft.tags),
            source=draft.source or _source_of(function),
        )

        def helper(role: str, helper_function: Callable[..., Any] | None) -> Callee | None:
            if helper_function is None:
                return None
            own = read_signature(name, helper_function, local_names)
            check_same_fields(name, role, own, signature.names)
            return Callee.of(helper_function, own.context)

        run: Runnable = Callee.of(function, signature.context)
        end = None
        if draft.isolation is not None:
            from mcp_tools.workers import isolated

            run = apart = isolated(
                function, isolation=draft.isolation, context_parameter=signature.context, name=name
            )
            end = apart.close
        if not run.is_async and tool.timeout_seconds < SHORT_TIMEOUT_S:
            logger.warning(
                "tool %r is synchronous: when its %g s are over its function runs on, and what it does still "
                "happens. Make it async, or register it with isolation='process'",
                name,
                tool.timeout_seconds,
            )
        self._tools[name] = RegisteredTool(
            tool=tool,
            validate=parameters.validate,
            run=run,
            end=end,
            preview=helper("preview", draft.preview),
            must_ask=helper("must_ask", draft.must_ask),
            subjects=helper("subjects", draft.subjects),
            shape_output=output[1] if output else None,
            id=secrets.token_hex(8),
        )
        self._names_by_key[_key(name)] = name
        self._changed()
        return tool

    def _refuse_duplicate(self, name: str) -> None:
        taken = self._names_by_key.get(_key(name))
        if taken is not None:
            raise DuplicateTool(name, taken_by=taken, source=self._tools[taken].tool.source)

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _parameters(name: str, source: _ParameterSource, signature: Any, docstring: str) -> Parameters:
    if source is None:
        return parameters_from_signature(name, signature, docstring)
    if isinstance(source, type):
        if not hasattr(source, "model_json_schema"):
            raise InvalidSchema(
                name, f"parameters is the class {source.__name__}, which is no Pydantic model"
            )
        return parameters_from_model(name, source, signature)
    return parameters_from_json_schema(name, source, signature)


def _check_text(name: str, *texts: str | None) -> None:
    try:
        "".join(text for text in texts if text).encode()
    except UnicodeEncodeError:
        problem = "its title or description holds a lone surrogate, which no client can be sent"
        raise InvalidSchema(name, problem) from None


def _check_timeout(name: str, timeout_seconds: object) -> None:
    is_number = isinstance(timeout_seconds, int | float) and not isinstance(timeout_seconds, bool)
    if not is_number or math.isnan(timeout_seconds) or timeout_seconds <= 0:  # type: ignore[operator, arg-type]
        raise RegistrationError(
            f"tool {name!r}: timeout is {timeout_seconds!r}; give a number of seconds over 0, or math.inf"
        )


def _check_numbers(name: str, draft: Tool) -> None:
    price, retries, hints = draft.price_usd, draft.retries, draft.annotations
    is_price = isinstance(price, int | float) and not isinstance(price, bool)
    if not is_price or not 0 <= price <= MAX_USAGE:
        raise RegistrationError(f"tool {name!r}: price_usd is {price!r}; give US dollars, from 0 to 10^15")
    if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= MAX_RETRIES:
        raise RegistrationError(
            f"tool {name!r}: retries is {retries!r}; give a whole number, 0 to {MAX_RETRIES}"
        )
    if retries and not (hints.read_only_hint or hints.idempotent_hint):
        raise RegistrationError(
            f"tool {name!r}: only a tool that is annotated as read-only or idempotent can have retries; "
            "another one could do twice what was asked for once"
        )


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _source_of(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", None) or type(function).__module__
    qualified = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}.{qualified}"
