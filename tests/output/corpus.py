"""Two hundred large and odd outputs, made anew by each run."""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mcp_tools import MediaContent, ResourceLink, TextContent, ToolOutput

LARGE = 150_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One output of a tool, and the schema that the tool promises, if any."""

    name: str
    make: Callable[[], Any]
    schema: dict[str, Any] | None = None


def text_cases() -> Iterator[Case]:
    rng = random.Random(5)
    alphabets = {
        "a": "a",
        "words": "the quick brown fox jumps over the lazy dog ",
        "digits": "0123456789",
        "crlf lines": "line of text\r\n",
        "bare returns": "line\r",
        "short lines": "x\n",
        "long lines": "word " * 3_000 + "\n",
        "empty lines": "\n",
        "blanks": " ",
        "tabs": "\t",
        "chinese": "人工智能正在改变我们的生活方式。",
        "japanese": "これは日本語の文章です。\n",
        "korean": "인공지능은 우리의 삶을 바꾸고 있습니다 ",
        "jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af",
        "arabic": "الذكاء الاصطناعي يغير حياتنا ",
        "hebrew with marks": "שָׁלוֹם עוֹלָם ",
        "hindi": "कृत्रिम बुद्धिमत्ता हमारे जीवन ",
        "thai": "ปัญญาประดิษฐ์กำลังเปลี่ยนชีวิต",
        "emoji": "👍🎉😀🚀",
        "families": "👨‍👩‍👧‍👦👩🏽‍💻",
        "flags": "🇩🇪🇫🇷🇯🇵",
        "zalgo": "e" + "\u0301\u0323\u0338" * 20,
        "only combining": "\u0301",
        "bidi": "\u202eabc\u202c\u2066def\u2069",
        "astral": "\U0001d518\U0001d52b\U0001d526",
        "private": "\ue000\uf8ff",
        "non-characters": "\ufffe\uffff",
        "controls": "".join(map(chr, range(32))),
        "escapes": "\x1b[31mred\x1b[0m",
        "nul": "\0",
        "del and c1": "\x7f\x80\x9f",
        "line separators": "a\u2028b\u2029c\x85",
        "lone surrogates": "ok\udc80\ud800",
        "swapped surrogates": "\udc00\ud800",
        "quotes": '"',
        "backslashes": "\\",
        "json-like": '{"a": [1, 2, {"b": "c"}]}, ',
        "unbalanced": "[" * 50 + "{",
        "xml": "<a><b attr='1'>text</b></a>\n",
        "markdown table": "| a | b |\n|---|---|\n",
        "csv": "1,alice,alice@example.com,2026-01-01\n",
        "uuid": "8f14e45f-ceea-467f-a0e6-4c2b1a2f3d4e\n",
        "own marks": "[… 10 characters are missing here …]\n",
        "own notes": "[shortened: 10 characters are missing. read_output(output_id=…)]\n",
        "bom": "\ufeff",
        "zero width": "a\u200bb\u200dc",
        "ideographic space": "\u3000",
    }
    for name, piece in alphabets.items():
        yield Case(name=f"text of {name}", make=lambda p=piece: p * (LARGE // len(p) + 1))
        yield Case(name=f"little text of {name}", make=lambda p=piece: p * 3)
    noise = rng.randbytes(LARGE)
    yield Case(name="base64", make=lambda: base64.b64encode(noise).decode())
    yield Case(name="base64 in lines", make=lambda: base64.encodebytes(noise).decode())
    yield Case(name="hex", make=lambda: noise.hex())
    yield Case(name="latin-1 noise", make=lambda: noise.decode("latin-1"))
    yield Case(name="noise with surrogates", make=lambda: noise.decode("utf-8", "surrogateescape"))
    yield Case(
        name="any code points", make=lambda: "".join(chr(rng.randrange(0x110000)) for _ in range(60_000))
    )
    yield Case(name="one long line, then short ones", make=lambda: "x" * LARGE + "\n" + "y\n" * 1_000)
    yield Case(name="short lines, then a long one", make=lambda: "y\n" * 1_000 + "x" * LARGE)
    for chars in (99_999, 100_000, 100_001, 99_400, 1_000, 1_001):
        yield Case(name=f"exactly {chars} characters", make=lambda n=chars: "n" * n)
    yield Case(name="empty text", make=lambda: "")


def data_cases() -> Iterator[Case]:
    rng = random.Random(6)
    row = {"id": 7, "name": "Alice", "tags": ["a", "b"], "score": 0.5, "note": None, "ok": True}
    deep: Any = "bottom"
    for _ in range(60):
        deep = {"in": deep, "beside": ["x" * 100] * 20}
    cyclic: list[Any] = ["x" * 1_000] * 200
    cyclic.append(cyclic)
    values: dict[str, Any] = {
        "none": None,
        "true": True,
        "zero": 0,
        "a number of 4,000 digits": 10**4_000,
        "numbers of 4,000 digits": [10**4_000] * 50,
        "not a number": math.nan,
        "infinities": [math.inf, -math.inf, math.nan] * 20_000,
        "negative zero": -0.0,
        "bytes": rng.randbytes(LARGE),
        "few bytes": b"\x00\xff",
        "a byte array": bytearray(rng.randbytes(LARGE)),
        "empty list": [],
        "empty object": {},
        "numbers": list(range(20_000)),
        "floats": [rng.random() for _ in range(20_000)],
        "words": ["word"] * 30_000,
        "nothings": [None] * 50_000,
        "empty lists": [[] for _ in range(50_000)],
        "empty objects": [{} for _ in range(50_000)],
        "100,000 rows": [row] * 100_000,
        "rows in an object": {"rows": [row] * 4_000, "count": 4_000},
        "rows with lists": [{"id": n, "items": list(range(n % 300))} for n in range(2_000)],
        "lists of lists": [[[1] * 30] * 30] * 100,
        "one long list among short ones": {"long": list(range(90_000)), "short": [1, 2, 3], "a": "b"},
        "many lists": {f"list {n}": list(range(50)) for n in range(2_000)},
        "long texts": {"a": "x" * LARGE, "b": "y" * LARGE},
        "long texts in rows": [{"id": n, "body": "lorem ipsum " * 2_000} for n in range(50)],
        "a text of emoji": {"text": "👩🏽‍💻" * 50_000},
        "a text of surrogates": {"text": "\udc80" * 50_000},
        "a huge key": {"k" * LARGE: 1, "small": 2},
        "huge keys": {str(n) + "k" * 5_000: n for n in range(100)},
        "many keys": {f"key {n}": n for n in range(30_000)},
        "odd keys": {1: "a", None: "b", (1, 2): "c", "\udc80": "d", "\n": "e", 2.5: "x" * LARGE},
        "deep": deep,
        "too deep": [[[[deep]]]],
        "deep lists": _nested_list(200),
        "cycle": cyclic,
        "set": set(range(50_000)),
        "tuple": tuple(range(50_000)),
        "range": range(80_000),
        "mixed": [1, "a", None, [1], {"a": 1}, 2.5, True] * 10_000,
        "controls in values": {"text": "".join(map(chr, range(32))) * 4_000},
        "quotes in values": {"text": '"\\' * 60_000},
        "matrix": [[rng.randrange(1_000) for _ in range(200)] for _ in range(200)],
        "a notice of its own": {"_notice": "mine", "rows": list(range(20_000))},
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[rng.random(), rng.random()] for _ in range(9_000)]],
        },
        "error object": {"error": ValueError("x" * LARGE), "at": 1},
        "complex": complex(1, 2),
        "objects": [object() for _ in range(3_000)],
    }
    for name, value in values.items():
        yield Case(name=f"data: {name}", make=lambda v=value: v)


def _nested_list(depth: int) -> list[Any]:
    value: list[Any] = ["x" * 2_000] * 100
    for _ in range(depth):
        value = [value]
    return value


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), **more}


def schema_cases() -> Iterator[Case]:
    rows = [{"id": n, "name": f"name {n}", "kind": "file"} for n in range(4_000)]
    closed_row = _object(
        {"id": {"type": "integer"}, "name": {"type": "string"}, "kind": {"enum": ["file", "folder"]}},
        additionalProperties=False,
    )
    row_list = {"type": "array", "items": closed_row}
    long = "x" * LARGE
    cases: dict[str, tuple[dict[str, Any], Any]] = {
        "rows": (_object({"rows": row_list}), {"rows": rows}),
        "closed": (_object({"rows": row_list}, additionalProperties=False), {"rows": rows}),
        "under result": (_object({"result": row_list}), rows),
        "at least 500": (_object({"rows": {**row_list, "minItems": 500}}), {"rows": rows}),
        "all or nothing": (_object({"rows": {**row_list, "minItems": 4_000}}), {"rows": rows}),
        "unique": (
            _object({"names": {"type": "array", "uniqueItems": True}}),
            {"names": ["same beginning " * 50 + str(n) for n in range(2_000)]},
        ),
        "contains its last": (
            _object({"numbers": {"type": "array", "contains": {"const": 19_999}}}),
            {"numbers": list(range(20_000))},
        ),
        "a list of two": (
            _object({"pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "array"}]}}),
            {"pair": ["a", list(range(20_000))]},
        ),
        "pattern": (
            _object({"code": {"type": "string", "pattern": "^[a-z]+$"}, "text": {"type": "string"}}),
            {"code": "abc" * 400, "text": long},
        ),
        "impossible pattern": (_object({"code": {"type": "string", "pattern": "^x+$"}}), {"code": long}),
        "long enough": (_object({"text": {"type": "string", "minLength": 5_000}}), {"text": long}),
        "const": (
            _object({"kind": {"const": "k" * 600}, "text": {"type": "string"}}),
            {"kind": "k" * 600, "text": long},
        ),
        "enum of long ones": (
            _object({"kinds": {"type": "array", "items": {"enum": ["a" * 700, "b" * 700]}}}),
            {"kinds": ["a" * 700, "b" * 700] * 500},
        ),
        "one of": (
            _object({"rows": {"anyOf": [{"type": "array", "minItems": 12}, {"type": "null"}]}}),
            {"rows": list(range(20_000))},
        ),
        "one of kinds": (
            _object(
                {
                    "items": {
                        "type": "array",
                        "items": {
                            "oneOf": [
                                _object({"kind": {"const": "text"}, "text": {"type": "string"}}),
                                _object({"kind": {"const": "list"}, "list": {"minItems": 2}}),
                            ]
                        },
                    }
                }
            ),
            {"items": [{"kind": "text", "text": "t" * 2_000}, {"kind": "list", "list": [1] * 900}] * 200},
        ),
        "references": (
            {
                "type": "object",
                "properties": {"tree": {"$ref": "#/$defs/node"}},
                "required": ["tree"],
                "$defs": {
                    "node": _object(
                        {"name": {"type": "string"}, "children": {"items": {"$ref": "#/$defs/node"}}}
                    )
                },
            },
            {"tree": _tree(5, 5)},
        ),
        "many required": (
            _object({f"field {n}": {"type": "string"} for n in range(60)}),
            {f"field {n}": "v" * 3_000 for n in range(60)},
        ),
        "a map with enough": (
            {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 50},
            {f"key {n}": n for n in range(8_000)},
        ),
        "a map, some required": (
            {"type": "object", "required": ["key 7999"]},
            {f"key {n}": n for n in range(8_000)},
        ),
        "names by pattern": (
            {"type": "object", "patternProperties": {"^k": {"minItems": 1}}, "additionalProperties": False},
            {f"k{n}": list(range(20)) for n in range(1_000)},
        ),
        "multiples": (
            _object({"numbers": {"type": "array", "items": {"type": "integer", "multipleOf": 5}}}),
            {"numbers": list(range(0, 75_000, 5))},
        ),
        "if then": (
            {
                "type": "object",
                "if": {"properties": {"kind": {"const": "big"}}},
                "then": {"properties": {"rows": {"minItems": 30}}},
            },
            {"kind": "big", "rows": [long[:3_000]] * 300},
        ),
        "older draft": (
            {"$schema": "http://json-schema.org/draft-07/schema#", **_object({"rows": row_list})},
            {"rows": rows},
        ),
    }  # fmt: skip
    for name, (schema, value) in cases.items():
        yield Case(name=f"schema: {name}", make=lambda v=value: v, schema=schema)
    yield Case(
        name="schema: pieces and data",
        make=lambda: ToolOutput(content=[TextContent(text=long)], structured={"rows": rows}),
        schema=_object({"rows": row_list}),
    )
    yield Case(
        name="schema: a picture and data",
        make=lambda: ToolOutput(
            content=[MediaContent(data=b"p" * 1_000, media_type="image/png")], structured={"rows": rows}
        ),
        schema=_object({"rows": row_list}),
    )


def _tree(depth: int, width: int) -> dict[str, Any]:
    children = [_tree(depth - 1, width) for _ in range(width)] if depth else []
    return {"name": f"node at {depth}", "children": children}


def output_cases() -> Iterator[Case]:
    long = "some line of text\n" * 9_000
    png = MediaContent(data=b"\x89PNG" + b"p" * 50_000, media_type="image/png")
    big = MediaContent(data=b"\x89PNG" + b"q" * 20_000_001, media_type="image/png")
    link = ResourceLink(uri="https://example.com/x", name="x")
    outputs: dict[str, list[Any]] = {
        "nothing": [],
        "a text": [TextContent(text=long)],
        "a head and a text": [TextContent(text="[ok]"), TextContent(text=long)],
        "three texts": [TextContent(text=long), TextContent(text="b" * 40_000), TextContent(text="short")],
        "1,500 texts": [TextContent(text=f"piece {n}") for n in range(1_500)],
        "5,000 longer texts": [TextContent(text=f"piece {n} " * 20) for n in range(5_000)],
        "a picture": [png],
        "a picture and a text": [png, TextContent(text=long)],
        "text between pictures": [png, TextContent(text=long), png, TextContent(text="end")],
        "a picture that is too large": [big],
        "a large picture and a text": [TextContent(text=long), big, TextContent(text="end")],
        "a link": [link],
        "5,000 links": [link] * 5_000,
        "a huge link": [ResourceLink(uri="https://example.com/" + "x" * LARGE, name="n" * 5_000)],
        "an odd media type": [MediaContent(data=b"x", media_type="image/" + "x" * LARGE)],
        "surrogates": [TextContent(text="\udc80" * 60_000), ResourceLink(uri="a:\udc80", name="\udc80")],
        "empty texts": [TextContent(text="")] * 100,
    }
    for name, pieces in outputs.items():
        yield Case(name=f"pieces: {name}", make=lambda p=pieces: ToolOutput(content=p))
    yield Case(
        name="pieces: data alone",
        make=lambda: ToolOutput(structured={"rows": [{"id": n} for n in range(30_000)]}),
    )
    yield Case(
        name="pieces: a link and data",
        make=lambda: ToolOutput(content=[link], structured={"text": "x" * LARGE}),
    )


def all_cases() -> list[Case]:
    return [*text_cases(), *data_cases(), *schema_cases(), *output_cases()]
