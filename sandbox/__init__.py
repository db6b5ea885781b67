"""Runs Python code in isolation. Imports nothing from mcp_tools."""
