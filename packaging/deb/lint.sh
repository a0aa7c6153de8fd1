#!/usr/bin/env bash
# lintian over the packages of dist/: any error or warning fails.   packaging/deb/lint.sh [DIST]
# What is overridden, and why, stands in debian/*.lintian-overrides.
set -euo pipefail
dist=${1:-dist}
if ! command -v lintian >/dev/null; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends lintian; } </dev/null >/dev/null 2>&1 ||
        { echo "lintian is missing and may not be installed from here: sudo apt-get install lintian" >&2; exit 69; }
fi
exec lintian --allow-root --tag-display-limit 0 --fail-on error,warning "$dist"/*.changes
