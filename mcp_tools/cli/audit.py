"""`mcp-tools audit`: is the log whole, what is in it, and its records for other systems.

Every command imports this for its arguments, so the rest is imported when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from mcp_tools.cli import exits

if TYPE_CHECKING:
    from mcp_tools.observe.audit import Verification

DEFAULT_LINES: Final = 10
MAX_LINES: Final = 1_000_000
_LISTED: Final = 20


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and those below it to the command line."""
    audit = commands.add_parser(
        "audit",
        help="check and read the record of calls",
        description="Check and read the audit log. Without FILE it is the log that the settings name.",
        allow_abbrev=False,
    )
    audit.set_defaults(parser=audit)
    below = audit.add_subparsers(dest="audit_command", metavar="COMMAND")
    verify = _command(below, "verify", "say whether the log is as it was written: exit code 0, or 1 if not")
    verify.add_argument(
        "--anchor", dest="audit_anchor", metavar="FILE", help="the log's anchor, to compare it with"
    )
    tail = _command(below, "tail", "show the last records")
    tail.add_argument(
        "-n", dest="count", type=_count, default=DEFAULT_LINES, metavar="N", help="how many; default 10"
    )
    tail.add_argument("-f", dest="follow", action="store_true", help="go on with those that come")
    show = _command(below, "show", "show all records of one call, or of one question")
    show.add_argument("id", metavar="ID", help="of a call, a confirmation, or the number of a record")
    export = _command(
        below, "export", "write all records for another system, one JSON object a line", has_json=False
    )
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--ocsf", action="store_true", help="calls, as OCSF API Activity with its record_integrity"
    )
    form.add_argument("--cloudevents", action="store_true", help="all records, as CloudEvents 1.0")
    _command(below, "head", "print the last record's number and hash, to be kept elsewhere")
    for each in below.choices.values():
        each.add_argument("file", nargs="?", metavar="FILE", help="the log; default from the settings")


def audit(arguments: argparse.Namespace) -> int:
    """Run the command below `audit`, or show which there are."""
    if arguments.audit_command is None:
        arguments.parser.print_help(sys.stderr)
        return exits.USAGE
    path, anchor = _which(arguments)
    if path is None:
        print("mcp-tools: no audit log is named; give FILE, or the setting audit_log", file=sys.stderr)
        return exits.USAGE
    try:
        match arguments.audit_command:
            case "verify":
                return _verify(path, anchor, as_json=arguments.json)
            case "tail":
                return _tail(path, arguments.count, follow=arguments.follow, as_json=arguments.json)
            case "show":
                return _show(path, arguments.id, as_json=arguments.json)
            case "export":
                return _export(path, is_ocsf=arguments.ocsf)
            case _:
                return _head(path, as_json=arguments.json)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        print(f"mcp-tools: {_safe(getattr(error, 'filename', None) or path)}: {_safe(what)}", file=sys.stderr)
        return exits.USAGE


def _command(below: Any, name: str, what: str, *, has_json: bool = True) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = below.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False
    )
    made.set_defaults(parser=made)
    made.add_argument("--config", metavar="FILE", help="a TOML file of settings, instead of your own one")
    if has_json:
        made.add_argument("--json", action="store_true", help="as JSON, for programs")
    return made


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_LINES:
        raise argparse.ArgumentTypeError(f"a number from 0 to {MAX_LINES}")
    return int(text)


def _which(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """The log, and the anchor if it is compared."""
    anchor = getattr(arguments, "audit_anchor", None)
    if arguments.file is not None:
        return arguments.file, anchor
    from mcp_tools.cli.prepare import read_settings
    from mcp_tools.config.process import environment
    from mcp_tools.errors import ConfigError
    from mcp_tools.production import audit_path

    settings = read_settings(arguments)
    try:
        path = audit_path(settings, environment())
    except ConfigError:  # it names flags of `serve`
        return None, None
    return path, anchor or settings.audit_anchor


def _verify(path: str, anchor: str | None, *, as_json: bool) -> int:
    from mcp_tools.observe.audit import verify
    from mcp_tools.output.plain import to_json

    found = verify(path, anchor=anchor)
    if as_json:
        from dataclasses import asdict

        last = {"seq": found.last.seq, "hash": found.last.hash}
        print(to_json({"is_whole": found.is_whole, **asdict(found), "last": last}))
    else:
        for line in _report(found):
            print(_safe(line))
    return exits.OK if found.is_whole else exits.FAILED


def _report(found: Verification) -> Iterable[str]:
    damage = found.damage
    if damage is not None:
        where = f", line {damage.line}" if damage.line else ", at its end"
        number = "" if damage.seq is None else f" (record {damage.seq})"
        yield f"DAMAGED: {damage.kind.value} in {damage.file}{where}{number}: {damage.detail}"
    else:
        yield f"whole: {found.records} records in {len(found.files)} files, up to number {found.last.seq}"
    yield f"last hash: {found.last.hash}"
    if found.anchored_seq is None:
        yield "not compared with an anchor: a log that was replaced whole would not show"
    elif damage is None:
        yield f"the anchor names record {found.anchored_seq}, which is there"
    if not found.is_end_known:
        yield "the lock file is missing: records cut from the end would not show, but by an anchor"
    if found.first_seq is not None and found.first_seq > 1:
        yield f"begins with record {found.first_seq}"
    if found.torn_bytes:
        yield f"ends with an unfinished record ({found.torn_bytes} bytes), which nobody was told is there"
    for repair in found.repairs[:_LISTED]:
        yield f"mended at record {repair['seq']}, {repair.get('time')}: {repair.get('reason')}"
    if len(found.repairs) > _LISTED:
        yield f"and mended {len(found.repairs) - _LISTED} times more"
    if found.unfinished_count:
        yield f"{found.unfinished_count} calls have no end: they still run, or their server died"
    for each in found.unfinished[:_LISTED]:
        yield f"  record {each.seq}  {each.time}  {each.tool}  {each.call_id}"


def _tail(path: str, count: int, *, follow: bool, as_json: bool) -> int:
    from mcp_tools.observe.audit.reading import LogReader

    with LogReader(path) as reader:
        last = reader.last(count)
        if not last and not follow and reader.tip().seq == 0:
            raise FileNotFoundError(2, os.strerror(2), path)
        for record in last:
            _print(record, as_json=as_json)
        if follow:
            after = last[-1]["seq"] if last else reader.tip().seq
            sys.stdout.flush()
            for record in reader.follow(after):
                _print(record, as_json=as_json)
                sys.stdout.flush()
    return exits.OK


def _show(path: str, wanted: str, *, as_json: bool) -> int:
    from mcp_tools.observe.audit.line import canonical
    from mcp_tools.observe.audit.reading import LogReader

    with LogReader(path) as reader:
        calls, questions = {wanted}, {wanted}
        for record in reader.records():
            if wanted in (record.get("call_id"), record.get("confirmation_id"), str(record["seq"])):
                calls.add(str(record.get("call_id")))
                questions.add(str(record.get("confirmation_id")))
        # The question and its answer are two calls: one names the other by the confirmation's id.
        questions.discard("None")
        calls.discard("None")
        is_found = False
        for record in reader.records():
            named = (record.get("call_id"), record.get("confirmation_id"))
            if named[0] in calls or named[1] in questions or str(record["seq"]) == wanted:
                is_found = True
                if as_json:
                    print(canonical(record))
                else:
                    _print_whole(record)
    if not is_found:
        print(f"mcp-tools: nothing about {_safe(wanted)} is in the log", file=sys.stderr)
        return exits.FAILED
    return exits.OK


def _export(path: str, *, is_ocsf: bool) -> int:
    from urllib.parse import quote

    from mcp_tools.observe.audit.export import to_cloudevents, to_ocsf
    from mcp_tools.observe.audit.line import canonical
    from mcp_tools.observe.audit.reading import LogReader

    with LogReader(path) as reader:
        if not reader.snapshot().files:
            raise FileNotFoundError(2, os.strerror(2), path)
        records = reader.records()
        source = f"file://{quote(os.path.abspath(path))}"
        for event in to_ocsf(records) if is_ocsf else to_cloudevents(records, source=source):
            print(canonical(event))
    return exits.OK


def _head(path: str, *, as_json: bool) -> int:
    from mcp_tools.observe.audit.line import canonical
    from mcp_tools.observe.audit.reading import LogReader

    with LogReader(path) as reader:
        tip = reader.tip()
    if tip.seq == 0:
        raise FileNotFoundError(2, os.strerror(2), path)
    # As JSON it is what an anchor holds.
    print(canonical({"v": 1, "seq": tip.seq, "hash": tip.hash}) if as_json else f"{tip.seq} {tip.hash}")
    return exits.OK


def _print(record: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        from mcp_tools.observe.audit.line import canonical

        print(canonical(dict(record)))
        return
    parts = [str(record["seq"]), str(record.get("time")), str(record.get("kind"))]
    for name in ("tool", "status", "error_code", "decision", "principal", "call_id", "reason"):
        value = record.get(name)
        if value is not None and not (name == "reason" and "call_id" in record):
            parts.append(str(value))
    print(_safe("  ".join(parts)))


def _print_whole(record: Mapping[str, Any]) -> None:
    from mcp_tools.output.plain import to_json

    print(_safe(f"record {record['seq']}: {record.get('kind')}, {record.get('time')}"))
    for name, value in sorted(record.items()):
        if value is not None and name not in ("seq", "kind", "time", "v"):
            text = value if isinstance(value, str) else to_json(value)
            print(f"  {_safe(name)}: {_safe(text)}")
    print()


def _safe(text: object) -> str:
    """On one line, and nothing in it that a terminal acts on: a log may have been forged."""
    from mcp_tools.confirmation.question import visible

    return visible(str(text))
