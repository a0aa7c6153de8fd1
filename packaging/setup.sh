#!/usr/bin/env bash
# Makes .venv from the locks in packaging/lock, and installs missing system packages where it may.
#   packaging/setup.sh [core|full]     (default: full)
# core: what zk0d, zk0-hub and zk0ctl run on, in seconds. full: also torch, lerobot, the virtual bench and the test tools (6 GB).
# A second run with nothing to do ends at once.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-full}
lock=packaging/lock
venv=.venv
say() { printf '\033[2m[set-up]\033[0m %s\n' "$*" >&2; }
die() { printf 'set-up: %s\n' "$*" >&2; exit 1; }
[ -f "$lock/$profile.txt" ] || die "there is no profile '$profile'; use core or full"

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    die "Python 3.12 or newer is needed and was not found; install it (Ubuntu 24.04: sudo apt-get install python3), or set PYTHON=/path/to/python3.12"
}
python=$(find_python)
key_of() {
    "$python" - "$1" "$lock"/*.txt <<'P'
import hashlib, pathlib, sys
h = hashlib.sha256(f"{sys.argv[1]} {sys.executable} {sys.version}".encode())
for name in (*sys.argv[2:], "packaging/setup.sh", "pyproject.toml"):
    h.update(pathlib.Path(name).read_bytes())
print(h.hexdigest())
P
}
key=$(key_of "$profile")
stamp=$(cat "$venv/zk0-stamp" 2>/dev/null || true)
if [ "$stamp" = "$key" ]; then exit 0; fi
# What has everything has the core: it is not taken apart again.
if [ "$profile" = core ] && [ -n "$stamp" ] && [ "$stamp" = "$(key_of full)" ]; then exit 0; fi

# --- system packages ---------------------------------------------------------------------------------------------
missing=()
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
need_header() { printf '#include <%s>\n' "$1" | cc -E - >/dev/null 2>&1; }
systemd_wanted=(gcc pkg-config libsystemd-dev)
if ! { command -v cc && command -v pkg-config && pkg-config --exists libsystemd; } >/dev/null 2>&1; then missing+=("${systemd_wanted[@]}"); fi
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
[ -f "$include/Python.h" ] || missing+=(python3-dev)
if [ "$profile" = full ]; then
    has_lib() { "$python" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" 2>/dev/null; }
    has_lib libEGL.so.1 || missing+=(libegl1)
    has_lib libEGL_mesa.so.0 || missing+=(libegl-mesa0)
    has_lib libGL.so.1 || missing+=(libgl1)
    has_lib libOpenGL.so.0 || missing+=(libopengl0)
    [ -n "$(ls /usr/lib/*/dri/*swrast* /usr/lib/*/dri/libdril* 2>/dev/null)" ] || missing+=(libgl1-mesa-dri)
fi
if [ ${#missing[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
        say "installing system packages: ${missing[*]}"
        { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
            >.setup.log 2>&1 || say "apt-get did not manage; going on"
    else
        say "these system packages are missing and may not be installed from here:"
        say "    sudo apt-get install ${missing[*]}"
        say "going on; without libsystemd-dev there is no journal, without EGL the virtual bench has no cameras"
    fi
fi
"$python" -c 'import venv, ensurepip' 2>/dev/null || die "python3-venv is missing: sudo apt-get install python3-venv"

# --- Python packages ---------------------------------------------------------------------------------------------
if ! "$venv/bin/python" -c "import sys; sys.exit(sys.version.split()[0] != '$("$python" -c 'import sys; print(sys.version.split()[0])')')" 2>/dev/null; then
    say "making $venv with $("$python" --version) ($python)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
rm -f "$venv/zk0-stamp"
if ! "$venv/bin/uv" --version >/dev/null 2>&1; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r "$lock/bootstrap.txt"
fi
say "installing $(grep -c '^[a-z0-9].*==' "$lock/$profile.txt") Python packages ($profile)$([ "$profile" = full ] && echo ', about 6 GB: some minutes')"
export VIRTUAL_ENV="$PWD/$venv"
"$venv/bin/uv" pip sync --quiet --allow-empty-requirements --require-hashes --compile-bytecode "$lock/$profile.txt" "$lock/bootstrap.txt"
if pkg-config --exists libsystemd 2>/dev/null; then
    "$venv/bin/uv" pip install --quiet --require-hashes --no-build-isolation -r "$lock/systemd.txt" \
        || say "systemd-python did not build; the daemon uses its own small notification instead and says so"
fi
"$venv/bin/uv" pip install --quiet --no-deps --no-build-isolation --config-setting editable_mode=compat -e .
"$venv/bin/python" -m compileall -q zk0d robot || true
echo "$key" >"$venv/zk0-stamp"
say "ready: $venv ($(du -sh "$venv" 2>/dev/null | cut -f1))"
