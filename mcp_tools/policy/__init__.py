"""Rules as data: which calls are denied, which ask a person first, which just run."""

from mcp_tools.policy.rules import Rule, RulePolicy

__all__ = ["Rule", "RulePolicy"]
