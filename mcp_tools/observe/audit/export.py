"""Records for other systems: OCSF events and CloudEvents, each with the record it is made from.

Sources: OCSF 1.9.0, API Activity (6003) and the profile `record_integrity`; CloudEvents 1.0.2, JSON format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from mcp_tools.observe.audit.line import canonical

OCSF_VERSION: Final = "1.9.0"
_CLASS: Final = 6003
_OTHER: Final = 99
_SHA_256: Final = 3
_JCS: Final = 2
"""Serialization of what is hashed: RFC 8785. Events hold no fractions, whose form would differ."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_ocsf(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield an event of the class API Activity for each record of a call; other records are left out.

    Each event's attestation covers the event and the fingerprint of the one before it.
    """
    previous: dict[str, Any] | None = None
    for record in records:
        if record.get("kind") not in ("call.intent", "call.outcome"):
            continue
        event = _ocsf(record)
        attestation: dict[str, Any] = {"uid": str(record["seq"])}
        if previous is not None:
            attestation["prev_event"] = previous
        event["attestation_list"] = [attestation]
        value = sha256(_jcs(event).encode()).hexdigest()
        fingerprint = {"algorithm_id": _SHA_256, "serialization_id": _JCS, "value": value}
        attestation["fingerprint"] = fingerprint
        previous = {"uid": record["hash"], "type_uid": event["type_uid"], "fingerprint": fingerprint}
        yield event


def to_cloudevents(records: Iterable[Mapping[str, Any]], *, source: str) -> Iterator[dict[str, Any]]:
    """Yield one event for each record.

    Args:
        source: Names the log, as a URI reference.
    """
    for record in records:
        event = {
            "specversion": "1.0",
            "id": record["hash"],
            "source": source,
            "type": f"mcp_tools.audit.{record['kind']}.v{record['v']}",
            "datacontenttype": "application/json",
            "sequence": f"{record['seq']:020d}",
            "data": record,
        }
        if _time_ms(record) is not None:
            event["time"] = record["time"]
        if record.get("call_id"):
            event["subject"] = record["call_id"]
        yield event


def _ocsf(record: Mapping[str, Any]) -> dict[str, Any]:
    is_outcome = record["kind"] == "call.outcome"
    status_id = 0 if not is_outcome else 1 if record.get("status") == "success" else 2
    actor: dict[str, Any] = {"user": {"name": record.get("principal")}}
    if record.get("session"):
        actor["session"] = {"uid": record["session"]}
    if record.get("client"):
        actor["app_name"] = record["client"]
    api: dict[str, Any] = {
        "operation": record.get("tool"),
        "service": {"name": "mcp_tools"},
        "request": {"uid": record.get("call_id")},
    }
    event: dict[str, Any] = {
        "activity_id": _OTHER,
        "activity_name": "Call begins" if not is_outcome else "Call ended",
        "category_uid": 6,
        "class_uid": _CLASS,
        "type_uid": _CLASS * 100 + _OTHER,
        "severity_id": 1 if status_id != 2 else 2,
        "status_id": status_id,
        "time": _time_ms(record) or 0,
        "actor": actor,
        "api": api,
        "src_endpoint": {"name": record.get("client") or record.get("transport") or "unknown"},
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "mcp_tools", "vendor_name": "mcp_tools"},
            "profiles": ["record_integrity"],
            "uid": record["hash"],
            "sequence": record["seq"],
            "correlation_uid": record.get("call_id"),
        },
        "unmapped": {"record": canonical(dict(record))},
    }
    if is_outcome:
        event["duration"] = int(record.get("duration_us") or 0) // 1000
        event["status"] = record.get("status")
        if record.get("error_code"):
            event["status_code"] = record["error_code"]
            event["status_detail"] = record.get("error")
            api["response"] = {"error": record["error_code"], "error_message": record.get("error")}
    return event


def _time_ms(record: Mapping[str, Any]) -> int | None:
    try:
        when = datetime.fromisoformat(str(record.get("time")))
        return (when - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, TypeError):
        return None  # a clock that was set to no year of ours


def _jcs(event: Mapping[str, Any]) -> str:
    return json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
