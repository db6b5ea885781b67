"""What this machine and these settings are good for, found by trying it: `mcp-tools doctor`.

A check is a function that takes a `Subject` and returns findings. They run at once, each in its own
time; one that raises or hangs becomes a finding. To look at something more, add a `Check` to `CHECKS`.
"""

from __future__ import annotations

from typing import Final

from mcp_tools.doctor import (
    clients,
    configuration,
    engine,
    folders,
    isolation,
    listening,
    records,
    versions,
    web,
)
from mcp_tools.doctor.model import Check, Examined, Finding, State, Subject, Topic
from mcp_tools.doctor.run import examine
from mcp_tools.doctor.search import SECONDS as SEARCH_S

CHECKS: Final = (
    Check(name="backend", topic=Topic.ISOLATION, look=isolation.chosen, seconds=45, is_required=True),
    Check(name="embedded", topic=Topic.ISOLATION, look=isolation.embedded, seconds=30),
    Check(name="kernel", topic=Topic.ISOLATION, look=isolation.kernel),
    Check(name="bubblewrap", topic=Topic.ISOLATION, look=isolation.bubblewrap),
    Check(name="docker", topic=Topic.DOCKER, look=engine.docker, seconds=20),
    Check(name="settings", topic=Topic.SETTINGS, look=configuration.settings, is_required=True),
    Check(name="roots", topic=Topic.FOLDERS, look=folders.roots, is_required=True),
    Check(name="clients", topic=Topic.CLIENTS, look=clients.clients, seconds=60),
    Check(name="listener", topic=Topic.HTTP, look=listening.http, is_required=True),
    Check(name="audit", topic=Topic.AUDIT, look=records.audit, is_required=True),
    Check(name="limits", topic=Topic.LIMITS, look=records.limits, is_required=True),
    Check(name="search", topic=Topic.WEB, look=web.search, seconds=SEARCH_S + 4),
    Check(name="python", topic=Topic.VERSIONS, look=versions.python),
    Check(name="dependencies", topic=Topic.VERSIONS, look=versions.dependencies),
)

__all__ = ["CHECKS", "Check", "Examined", "Finding", "State", "Subject", "Topic", "examine"]
