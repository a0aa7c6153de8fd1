#!/usr/bin/env bash
# Builds zk0-common, zk0d and zk0-hub (.deb, Architecture: all) from the tracked files into dist/.
#   packaging/deb/build.sh [OUT] [VERSION]
# Two builds of one commit are byte-equal: every time in them is the commit's, and nothing of this machine goes in.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(realpath -m "${1:-dist}")
version=${2:-$(sed -n 's/^__version__ = "\(.*\)"/\1/p' zk0d/__init__.py)}
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TZ=UTC
die() { printf 'deb: %s\n' "$*" >&2; exit 1; }
[ -n "$version" ] || die "zk0d/__init__.py names no version"
if ! { command -v dh && command -v dpkg-buildpackage; } >/dev/null; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends debhelper dpkg-dev fakeroot; } </dev/null >/dev/null 2>&1 ||
        die "debhelper is missing and may not be installed from here: sudo apt-get install debhelper dpkg-dev fakeroot"
fi
if [ -e .git ]; then
    # A git that cannot read its repository (another user's) must not lead to other files with another time.
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) || die "git cannot tell the commit"
    list() { git ls-files -z "$@"; }
else
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}
    list() { find "$@" -type f ! -path '*/__pycache__/*' -print0; }
fi
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
tree=$work/zk0-$version
mkdir -p "$tree" "$out"
parts=(zk0d robot systemd packaging docs)
list "${parts[@]}" |
    while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
    tar --create --null --files-from=- | tar --extract --no-same-permissions --no-same-owner --directory="$tree"
cp -r "$tree/packaging/deb/debian" "$tree/debian"
printf 'zk0 (%s) unstable; urgency=medium\n\n  * Built from the repository; its history is the changelog.\n\n -- zk0 maintainers <maintainers@zk0.invalid>  %s\n' \
    "$version" "$(date -R -u -d "@$SOURCE_DATE_EPOCH")" >"$tree/debian/changelog"
(cd "$tree" && dpkg-buildpackage --build=binary --unsigned-source --unsigned-changes --no-check-builddeps) >"$work/log" 2>&1 ||
    { tail -n 40 "$work/log" >&2; die "the build failed"; }
for deb in "$work"/*.deb; do
    rm -f "$out/$(basename "${deb%%_*}")"_*.deb
    cp "$deb" "$out/"
    echo "$out/$(basename "$deb")"
done
cp "$work"/*.changes "$work"/*.buildinfo "$out/" 2>/dev/null || true
