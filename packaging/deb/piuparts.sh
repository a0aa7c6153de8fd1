#!/usr/bin/env bash
# Installs, removes and purges the packages of dist/ in a bare Debian 13 with piuparts, which looks for what they leave behind (upgrades are
# tested by tests/booted: no archive holds an older zk0).
#   packaging/deb/piuparts.sh [DIST]
# The booted tests look at the same with a running systemd; this looks without one, as in a chroot or an image builder.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=${1:-dist}
if ! command -v piuparts >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends piuparts; } </dev/null >/dev/null 2>&1 ||
        { echo "piuparts is missing and may not be installed from here: sudo apt-get install piuparts" >&2; exit 69; }
fi
image=$(packaging/booted/image.sh bare)
# --no-symlinks: the system's own, whose targets come with packages that it has not, are no finding; lintian looks at ours.
piuparts --distribution=trixie --existing-chroot="$image" --no-eatmydata --no-symlinks --warn-on-usr-move=disabled --skip-logrotatefiles-test \
    --ignore-regex='/?var/cache/debconf/tmp\.ci/?' --log-level=error "$dist"/zk0-common_*.deb "$dist"/zk0d_*.deb "$dist"/zk0-hub_*.deb
echo "piuparts: nothing to say about $(echo "$dist"/*.deb)"
