#!/usr/bin/env bash
# Installs, removes, purges and upgrades the packages of dist/ in a bare Debian 13 with piuparts, which looks for what they leave behind.
#   packaging/deb/piuparts.sh [DIST]
# The booted tests look at the same with a running systemd; this looks without one, as in a chroot or an image builder.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=${1:-dist}
command -v piuparts >/dev/null || { echo "piuparts is missing: apt-get install piuparts" >&2; exit 1; }
image=$(packaging/booted/image.sh bare)
exec piuparts --distribution=trixie --existing-chroot="$image" --no-eatmydata --warn-on-usr-move=disabled --skip-logrotatefiles-test \
    --ignore-regex='/?var/cache/debconf/tmp\.ci/?' --log-level=error "$dist"/zk0-common_*.deb "$dist"/zk0d_*.deb "$dist"/zk0-hub_*.deb
