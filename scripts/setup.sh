# Sourced by the scripts beside it: finds Python, makes the environment, installs what a lock lists.
# Every download is checked against the hashes in requirements/; where packages come from is pip's own
# configuration. Nothing is done when the lock, pyproject.toml, the Python and the folder are unchanged.

set -euo pipefail
unset PYTHONPATH PYTHONHOME PIP_REQUIRE_VIRTUALENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$ROOT/.venv"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
[ -t 2 ] || say() { printf '==> %s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    [ -z "${PYTHON:-}" ] || fail "PYTHON is '$PYTHON', which is no Python 3.11 or newer"
    fail "no Python 3.11 or newer on PATH; install one, or name it: PYTHON=/path/to/python3 $0"
}

# Whether $VENV runs and was made where it stands now: scripts in a moved environment point elsewhere.
venv_works() {
    [ -x "$VENV/bin/python" ] &&
        "$VENV/bin/python" -c 'import os, pip, sys; sys.exit(
            sys.version_info < (3, 11) or not os.path.samefile(sys.prefix, sys.argv[1]))' "$VENV" 2>/dev/null &&
        grep -qF "$VENV" "$VENV/bin/activate"
}

fingerprint() {
    "$VENV/bin/python" - "$ROOT" "$@" <<'PY'
import hashlib, pathlib, sys

root, *files = sys.argv[1:]
digest = hashlib.sha256(f"{root} {sys.version}".encode())
for name in [*files, "pyproject.toml"]:
    digest.update(pathlib.Path(root, name).read_bytes())
print(digest.hexdigest())
PY
}

# What pip prints is of interest only when it fails.
pip_install() {
    local log="$VENV/pip.log"
    "$VENV/bin/python" -m pip install "$@" > "$log" 2>&1 && return
    cat "$log" >&2
    fail "pip could not install; its message is above"
}

# set_up NAME: install requirements/NAME.txt and the project itself, editable.
set_up() {
    local lock="requirements/$1.txt" stamp="$VENV/.installed-$1" python mark
    # Two scripts at once take turns, where there is flock(1).
    exec 9< "$ROOT/pyproject.toml"
    ! command -v flock > /dev/null || flock 9
    if ! venv_works; then
        python=$(find_python)
        say "making ${VENV#"$ROOT/"} with $("$python" -V)"
        "$python" -m venv --clear "$VENV" ||
            fail "$python cannot make an environment; on Debian and Ubuntu: apt install python3-venv"
    fi
    mark=$(fingerprint "$lock")
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$mark" ]; then
        say "installing $(grep -c == "$ROOT/$lock") packages from $lock (the first time takes about a minute)"
        pip_install --require-hashes --only-binary :all: -r "$ROOT/$lock"
        # Without isolation: the build backend is in the lock too, so nothing unhashed is fetched.
        pip_install --no-deps --no-build-isolation -e "$ROOT"
        printf '%s\n' "$mark" > "$stamp"
    fi
    exec 9<&-
}
