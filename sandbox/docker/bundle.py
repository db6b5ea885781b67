"""What is sent into a container: the modules that run inside, and the text that imports them from stdin.

The server takes them from its own package, so an image needs nothing but an interpreter, and always runs the
agent that fits the server.
"""

from __future__ import annotations

import functools
import json
import zlib
from importlib import resources

_PACKAGES = ("sandbox", "sandbox.docker", "sandbox.docker.inside", "sandbox.linux")
_MODULES = (
    "sandbox.docker.frames",
    "sandbox.docker.inside.agent",
    "sandbox.docker.inside.call",
    "sandbox.docker.inside.counters",
    "sandbox.docker.inside.link",
    "sandbox.docker.inside.locked",
    "sandbox.docker.inside.processes",
    "sandbox.docker.inside.session",
    "sandbox.docker.inside.single",
    "sandbox.docker.inside.worker",
    "sandbox.linux.artifacts",
    "sandbox.linux.landlock",
    "sandbox.linux.libc",
    "sandbox.linux.memory",
    "sandbox.linux.runner",
    "sandbox.linux.seccomp",
    "sandbox.linux.session",
    "sandbox.linux.statuses",
    "sandbox.linux.syscalls",
    "sandbox.linux.walls",
    "sandbox.linux.wire",
)

# Run as `python3 -I -S -u -c BOOT`. The modules come from memory: a container's file system is read-only, and
# what its /tmp has belongs to the code.
BOOT = """
import json, os, sys, zlib
def read(size):
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data
line = b""
while not line.endswith(b"\\n"):
    line += read(1)
modules = json.loads(zlib.decompress(read(int(line))))
class Modules:
    def find_spec(self, name, path=None, target=None):
        if name in modules:
            spec = type(sys.__spec__)(name, self, origin="<sandbox>", is_package=modules[name] is None)
            return spec
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        name = module.__name__
        exec(compile(modules[name] or "", "<" + name + ">", "exec", dont_inherit=True), module.__dict__)
sys.meta_path.insert(0, Modules())
from sandbox.docker.inside import agent
agent.main()
"""


@functools.cache
def payload() -> bytes:
    """What the server writes to the container's stdin before the first frame. The same for one version."""
    modules: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for name in _MODULES:
        *folders, last = name.split(".")[1:]
        modules[name] = resources.files("sandbox").joinpath(*folders, f"{last}.py").read_text("utf-8")
    data = zlib.compress(json.dumps(modules, sort_keys=True).encode(), 9)
    return b"%d\n%b" % (len(data), data)


def command() -> list[str]:
    """What a container runs: the image's own interpreter, without its environment, paths and packages."""
    return ["python3", "-I", "-S", "-u", "-c", BOOT]
