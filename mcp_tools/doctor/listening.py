"""Where `serve` would listen: is the port free, and who could call through it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from mcp_tools.doctor.model import Finding, State, Subject
from mcp_tools.errors import ConfigError


def http(subject: Subject) -> Sequence[Finding]:
    """The listener, where `transport` asks for one: its port, its tokens, the names it answers to."""
    settings = subject.settings
    if settings.transport == "stdio":
        return [Finding(name="listener", state=State.OK, found="transport is stdio: nothing listens")]
    try:
        addresses = _addresses(settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        return [
            Finding(
                name="listener",
                state=State.PROBLEM,
                found=f"{settings.host} is no address of any machine ({error})",
                remedy="Choose another with --host; 127.0.0.1 is the default.",
            )
        ]
    is_local = all(
        ipaddress.ip_address(str(host).partition("%")[0]).is_loopback for _, host in _hosts(addresses)
    )
    return [
        _port(addresses, settings.host, settings.port),
        _tokens(subject, is_local=is_local),
        *_names(subject),
    ]


_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


def _addresses(host: str, port: int) -> list[_Address]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _hosts(addresses: Sequence[_Address]) -> list[tuple[socket.AddressFamily, str]]:
    return [(family, str(address[0])) for family, address in addresses]


def _port(addresses: Sequence[_Address], host: str, port: int) -> Finding:
    where = f"{host}:{port}"
    bound = 0
    with contextlib.ExitStack() as stack:
        for family, address in addresses:
            try:
                listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(address)
                listener.listen(1)
            except OSError as error:
                if bound and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                return Finding(
                    name="port", state=State.PROBLEM, found=f"{where}: {_why(error)}", remedy=_fix(error)
                )
            bound += 1
    return Finding(name="port", state=State.OK, found=f"{where} is free")


def _why(error: OSError) -> str:
    return {
        errno.EADDRINUSE: "the port is in use; a server of yours may be running already",
        errno.EACCES: "not permitted; ports below 1024 need privileges",
        errno.EADDRNOTAVAIL: "this machine does not have that address",
    }.get(error.errno or 0, str(error.strerror))


def _fix(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "Choose another address with --host."
    return "Stop what uses it, or choose another port with --port."


def _tokens(subject: Subject, *, is_local: bool) -> Finding:
    from mcp_tools.server.http import load_tokens

    settings = subject.settings
    given = {"MCP_TOOLS_TOKEN": settings.token} if settings.token is not None else {}
    try:
        tokens = load_tokens(settings.token_file, given)
    except ConfigError as error:
        return Finding(
            name="tokens", state=State.PROBLEM, found=str(error), remedy="Mend the file or the variable."
        )
    if tokens is not None:
        if is_local:
            return Finding(
                name="tokens", state=State.OK, found=f"callers need one; for {', '.join(tokens.names)}"
            )
        return Finding(
            name="tokens",
            state=State.WARNING,
            found=f"callers need one (for {', '.join(tokens.names)}), and it crosses the network unencrypted",
            remedy="Put a proxy with TLS in front, or listen on 127.0.0.1.",
        )
    if not is_local:
        return Finding(
            name="tokens",
            state=State.PROBLEM,
            found=f"there are none, and {settings.host} can be reached from the network: serve refuses",
            remedy="Give callers tokens with --token-file or MCP_TOOLS_TOKEN, or listen on 127.0.0.1.",
        )
    if settings.python_enabled and settings.python_network:
        return Finding(
            name="tokens",
            state=State.PROBLEM,
            found="there are none, and python_network lets code reach the listener: serve refuses",
            remedy="Give callers tokens, or turn python_network off.",
        )
    return Finding(
        name="tokens",
        state=State.WARNING,
        found="there are none: every program and user of this machine can call the tools",
        remedy="Give callers tokens with --token-file or MCP_TOOLS_TOKEN.",
    )


def _names(subject: Subject) -> list[Finding]:
    from mcp_tools.server.http.hosts import HostCheck

    try:
        HostCheck(subject.settings.allowed_hosts, subject.settings.allowed_origins)
    except ConfigError as error:
        return [
            Finding(
                name="allowed hosts",
                state=State.PROBLEM,
                found=str(error),
                remedy="Change allowed_hosts or allowed_origins.",
            )
        ]
    return []
