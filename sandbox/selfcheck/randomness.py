"""Two calls that get the same random numbers: where a zygote goes wrong without anybody noticing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sandbox.selfcheck.arenas import Arena
from sandbox.selfcheck.model import Attack, Family, Observation
from sandbox.selfcheck.prelude import program
from sandbox.selfcheck.stage import Stage
from sandbox.types import SandboxConfig

_RANDOM = r"""
import json, random, secrets, ssl, tempfile, uuid
def numbers():
    found = {
        "ssl": ssl.RAND_bytes(16).hex(), "random": random.random(), "random.Random": random.Random().random(),
        "SystemRandom": random.SystemRandom().random(), "secrets": secrets.token_hex(16),
        "uuid4": str(uuid.uuid4()), "uuid1": str(uuid.uuid1()), "urandom": os.urandom(16).hex(),
        "tempfile": os.path.basename(tempfile.mktemp()),
    }
    try:
        import numpy
        found["numpy.random"] = numpy.random.random()
        found["numpy.random.default_rng"] = numpy.random.default_rng().random()
    except ImportError:
        pass
    return found
"""

_SHOW_RANDOM = (
    _RANDOM
    + r"""
print(json.dumps(numbers()))
"""
)

_NAIVE_RANDOM = (
    _RANDOM
    + r"""
# A zygote as one would write it first: everything is loaded, then a fork for each call, in namespaces.
# Each is the first process of its namespace, and OpenSSL tells copies apart by that number.
def fork(flags):
    pid = call("clone", flags | 17, 0, 0, 0, 0)[0]
    return pid if pid >= 0 else _libc.fork()
def children():
    numbers()
    for _ in range(2):
        pid = fork(NEWPID)
        if pid == 0:
            print(json.dumps(numbers()), flush=True)
            _libc._exit(0)
        os.waitpid(pid, 0)
pid = fork(NEWUSER | NEWPID)
if pid == 0:
    children()
    _libc._exit(0)
os.waitpid(pid, 0)
"""
)


def _random(arena: Arena, stage: Stage) -> Observation:
    if arena.walled:
        outputs: list[str] = []
        with ThreadPoolExecutor(4) as pool:
            outputs += pool.map(lambda _: arena.run(program(_SHOW_RANDOM)).result.stdout, range(4))
        outputs += [arena.run(program(_SHOW_RANDOM)).result.stdout for _ in range(2)]
        lines = [line for output in outputs for line in output.splitlines()]
    else:
        lines = arena.run(program(_NAIVE_RANDOM)).result.stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    if len(found) < 2:
        return Observation(trouble=f"{len(found)} calls answered")
    same = [name for name in found[0] if len({str(each[name]) for each in found}) < len(found)]
    if same:
        return Observation(breach=f"the same in two calls: {', '.join(same)}")
    return Observation(met=f"{len(found)} calls differ in {', '.join(found[0])}")


def _preloaded(stage: Stage, config: SandboxConfig) -> dict[str, Any]:
    """What has state of its own is loaded before the fork, which is where it goes wrong."""
    modules = ["ssl", "random", "secrets", "uuid", "tempfile"]
    if config.packages and any(Path(config.packages).glob("**/numpy/__init__.py")):
        modules.append("numpy")
    return {"preload": tuple(dict.fromkeys([*config.preload, *modules]))}


ATTACKS = (
    Attack(
        name="get the same random numbers as another call",
        family=Family.CALLS,
        function=_random,
        settings=_preloaded,
    ),
)
