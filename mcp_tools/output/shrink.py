"""Data that is too large → less of the same data, which still fits its JSON Schema.

Rows go first: of arrays the longest are cut first, down to a few items. Then long texts are cut, and last
entries of objects. Nothing is known of the schema beforehand: what a cut breaks, validation names, and that
is then left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from mcp_tools.output.preview import boundary
from mcp_tools.output.tokens import estimate_tokens

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

Validate = Callable[[Any], Sequence["ValidationError"]]
"""Returns what is wrong with data, or at least the first of it; empty if it fits its schema."""

_ROUNDS: Final = 40
_SHOWN_PLACES: Final = 3
_SHOWN_PATH_CHARS: Final = 40
_NEVER: Final = sys.maxsize
# Each line is given up before the next: items of an array, characters of a text, entries of an object.
_FLOORS: Final = ((10, 500, 1_000), (3, 100, 30), (1, 40, 10), (0, 16, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """Less of the data.

    Args:
        value: What is left, as plain data.
        text: That as indented JSON.
        left_out: What is missing, in a few words.
    """

    value: Any
    text: str
    left_out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caps:
    items: int = _NEVER
    chars: int = _NEVER
    entries: int = _NEVER


@dataclass(slots=True, eq=False)
class _Spared:
    """What must not be cut at a place, and at the places inside of it. `None` as a step is any item."""

    whole: bool = False
    whole_texts: bool = False
    min_items: int = 0
    min_chars: int = 0
    min_entries: int = 0
    keys: set[str] = field(default_factory=set)
    inside: dict[str | None, _Spared] = field(default_factory=dict)

    def at(self, step: str | None) -> _Spared | None:
        if self.whole:
            return self
        found = self.inside.get(step)
        if self.whole_texts:
            if found is None:
                return _WHOLE_TEXTS
            found.whole_texts = True
        return found


_WHOLE_TEXTS: Final = _Spared(whole_texts=True)


def as_json(value: Any) -> str:
    """Render plain data as the protocol's side does, with an indent of 2."""
    # Imported on use, and not the standard library, which is ten times slower with an indent.
    from pydantic_core import to_json

    return to_json(value, indent=2).decode()


def shrink(value: Any, *, max_chars: int, max_tokens: int, validate: Validate | None) -> Shrunk | None:
    """Return as much of `value` as its JSON text may have, or None where that cannot be.

    Args:
        value: Plain data, too large as it is.
        max_chars, max_tokens: Of the indented JSON text.
        validate: Checks against the schema, which `value` fits. None: anything goes.
    """
    spared = _Spared()
    limit = max_chars
    for _ in range(_ROUNDS):
        found = _within(value, limit, spared)
        if found is None:
            return None
        text = as_json(found.value)
        excess = max(len(text) / max_chars, estimate_tokens(text) / max_tokens)
        if excess > 1:
            limit = int(min(limit, found.size) / excess * 0.97)
            continue
        problems = validate(found.value) if validate is not None else ()
        if not problems:
            return Shrunk(value=found.value, text=text, left_out=found.left_out())
        # Each of them, and not only up to the first that tells something new: a round costs a validation.
        if sum(_spare(spared, problem) for problem in problems) == 0:
            return None
    return None


def _within(value: Any, limit: int, spared: _Spared) -> _Built | None:
    caps = _Caps()
    best = _built(value, caps, limit, spared)
    if best is not None:
        return best
    for floors in _FLOORS:
        for name, floor in zip(("items", "chars", "entries"), floors, strict=True):
            before, caps = caps, replace(caps, **{name: floor})
            best = _built(value, caps, limit, spared)
            if best is not None:
                # What was cut too far on the way here grows again, this first and rows last.
                ceilings = {name: getattr(before, name)}
                for other in ("chars", "items"):
                    ceilings.setdefault(other, _NEVER)
                for growing, ceiling in ceilings.items():
                    best, caps = _grown(value, best, caps, growing, ceiling, limit, spared)
                return best
    return None


def _grown(
    value: Any, best: _Built, caps: _Caps, name: str, ceiling: int, limit: int, spared: _Spared
) -> tuple[_Built, _Caps]:
    """Return the largest of a cap that fits, found by doubling and then halving the step."""
    known, step = getattr(caps, name), 1
    is_doubling = True
    # Within 3 % of the most is near enough: each attempt walks all that is left.
    while step > known // 32 and best.was_cut(name):
        attempt = replace(caps, **{name: min(known + step, ceiling)})
        built = _built(value, attempt, limit, spared) if known + step <= ceiling else None
        if built is None:
            is_doubling = False
        else:
            best, caps, known = built, attempt, getattr(attempt, name)
        step = step * 2 if is_doubling else step // 2
    return best, caps


def _built(value: Any, caps: _Caps, limit: int, spared: _Spared) -> _Built | None:
    building = _Built(caps, limit)
    try:
        building.value = building.copy(value, spared, 0)
    except _TooLargeError:
        return None
    return building


class _TooLargeError(Exception):
    pass


class _Built:
    """A copy of data under caps, with notes of what was cut. Stops where it gets too large."""

    def __init__(self, caps: _Caps, limit: int) -> None:
        self.value: Any = None
        self.size = 0
        self._caps = caps
        self._limit = limit
        self._path: list[str] = []
        self._items: dict[tuple[str, ...], list[int]] = {}  # place → [kept, all]
        self._texts = 0
        self._entries = 0

    def was_cut(self, name: str) -> bool:
        return bool({"items": self._items, "chars": self._texts, "entries": self._entries}[name])

    def copy(self, value: Any, spared: _Spared | None, depth: int) -> Any:
        if isinstance(value, str):
            return self._text(value, spared)
        if isinstance(value, list):
            return self._list(value, spared, depth + 1)
        if isinstance(value, dict):
            return self._dict(value, spared, depth + 1)
        self._count(len(repr(value)) if type(value) in (int, float) else 5)
        return value

    def left_out(self) -> str:
        """Say what was cut, the most first."""
        places = sorted(self._items.items(), key=lambda each: each[1][0] - each[1][1])
        said = [
            f"{_shown(path)}: {kept:,} of {total:,} items" for path, (kept, total) in places[:_SHOWN_PLACES]
        ]
        if len(places) > _SHOWN_PLACES:
            said.append(f"{len(places) - _SHOWN_PLACES:,} more lists are cut")
        if self._texts:
            said.append(f"{self._texts:,} texts are cut")
        if self._entries:
            said.append(f"{self._entries:,} entries of objects are missing")
        return "; ".join(said)

    def _count(self, chars: int) -> None:
        self.size += chars
        if self.size > self._limit:
            raise _TooLargeError

    def _text(self, text: str, spared: _Spared | None) -> str:
        cap = max(self._caps.chars, 0 if spared is None else spared.min_chars)
        if len(text) > cap and not (spared is not None and (spared.whole or spared.whole_texts)):
            kept = boundary(text, cap)
            cut = f"{text[:kept]}… [{len(text) - kept:,} more characters]"
            if len(cut) < len(text):
                self._texts += 1
                text = cut
        self._count(len(text) + 2)
        return text

    def _list(self, items: list[Any], spared: _Spared | None, depth: int) -> list[Any]:
        self._count(2)
        inner = None if spared is None else spared.at(None)
        cap = self._caps.items
        if spared is not None:
            cap = len(items) if spared.whole else max(cap, spared.min_items)
        if len(items) > cap:
            noted = self._items.setdefault(tuple(self._path), [0, 0])
            noted[0] += cap
            noted[1] += len(items)
        kept: list[Any] = []
        self._path.append("[]")
        for item in items[:cap] if len(items) > cap else items:
            self._count(2 + 2 * depth)
            kept.append(self.copy(item, inner, depth))
        self._path.pop()
        return kept

    def _dict(self, entries: dict[str, Any], spared: _Spared | None, depth: int) -> dict[str, Any]:
        self._count(2)
        cap, needed = self._caps.entries, frozenset[str]()
        if spared is not None:
            needed = frozenset(spared.keys)
            cap = len(entries) if spared.whole else max(cap, spared.min_entries)
        kept: dict[str, Any] = {}
        for position, (key, item) in enumerate(entries.items()):
            if position >= cap and key not in needed:
                self._entries += 1
                continue
            self._count(len(key) + 6 + 2 * depth)
            self._path.append(key)
            kept[key] = self.copy(item, None if spared is None else spared.at(key), depth)
            self._path.pop()
        return kept


def _spare(root: _Spared, problem: ValidationError) -> bool:
    """Leave alone what a cut should not have touched. Returns whether that is anything new."""
    if sum(_spare_exactly(root, leaf) for leaf in _leaves(problem)):
        return True
    place = _place(root, problem)
    if place.whole:
        return False
    place.whole = True
    return True


def _spare_exactly(root: _Spared, problem: ValidationError) -> bool:
    wanted: Any = problem.validator_value
    found: Any = problem.instance
    place = _place(root, problem)
    match problem.validator:
        case "required":
            new = {key for key in wanted if key not in found} - place.keys
            place.keys |= new
            return bool(new)
        case "minItems" if place.min_items < wanted:
            place.min_items = wanted
            return True
        case "minProperties" if place.min_entries < wanted:
            place.min_entries = wanted
            return True
        case "minLength" if place.min_chars < wanted:
            place.min_chars = wanted
            return True
        case "uniqueItems" if not place.whole_texts:
            place.whole_texts = True
            return True
        case "pattern" | "maxLength" | "format" | "enum" | "const" if isinstance(found, str):
            is_new = not place.whole
            place.whole = True
            return is_new
    return False


def _leaves(problem: ValidationError) -> Iterator[ValidationError]:
    if not problem.context:
        yield problem
    for inner in problem.context or ():
        yield from _leaves(inner)


def _place(root: _Spared, problem: ValidationError) -> _Spared:
    place = root
    for step in problem.absolute_path:
        place = place.inside.setdefault(None if isinstance(step, int) else step, _Spared())
    return place


def _shown(path: tuple[str, ...]) -> str:
    name = ".".join(path).replace(".[]", "[]")
    if not name:
        return "the list"
    name = name.replace("\n", " ")
    return name if len(name) <= _SHOWN_PATH_CHARS else "…" + name[-_SHOWN_PATH_CHARS:]
