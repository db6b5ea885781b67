"""The audit log: who called what, with which arguments, who allowed it and how it ended.

`AuditLog` writes it, `verify` says whether it is whole.
"""

from mcp_tools.observe.audit.log import DEFAULT_NAME, AuditLog
from mcp_tools.observe.audit.verify import Damage, DamageKind, Unfinished, Verification, verify

__all__ = ["DEFAULT_NAME", "AuditLog", "Damage", "DamageKind", "Unfinished", "Verification", "verify"]
