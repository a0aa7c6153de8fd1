#!/usr/bin/env bash
# Makes the Debian 13 system that the booted tests start from, once, outside the repository, and prints its folder.
#   packaging/booted/image.sh
# The mirror is the one that this machine's own apt uses. The packages that zk0d depends on are downloaded into its apt cache but not
# installed, so that a test installs them as an owner would, without a network. Not an image for anybody's use.
set -euo pipefail
cd "$(dirname "$0")"
suite=trixie
base="minbase plus systemd, dbus, polkit, udev: what any Ubuntu or Debian desktop or server has"
include=systemd,systemd-sysv,dbus,polkitd,udev,libpam-systemd,procps,kmod
needs=$(sed -n '/^Package:/,$p' ../deb/debian/control | grep -oE 'python3(-[a-z0-9]+)*' | sort -u | grep -v '^python3-all')
cache=${XDG_CACHE_HOME:-$HOME/.cache}/zk0-booted
key=$(printf '%s\n' "$suite" "$base" "$include" "$needs" 2 | sha256sum | cut -c1-12)
image=$cache/debian-$suite-$key
if [ -e "$image/.zk0-ready" ]; then echo "$image"; exit 0; fi

die() { printf 'booted: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "must be root to make a system image"
command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap systemd-container >/dev/null; } ||
    die "debootstrap is missing: apt-get install debootstrap systemd-container"
# shellcheck disable=SC2016  # the dollar signs are apt's
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n1)
[ -n "$mirror" ] || die "this machine's apt has no Debian source to build the image from"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ -e "$image/.zk0-ready" ]; then echo "$image"; exit 0; fi
find "$cache" -maxdepth 1 -name "debian-$suite-*" -prune -exec rm -rf {} +   # a half-made one, or of an older recipe
mkdir -p "$image"
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid   # every suite is a link to this one
{
    debootstrap --variant=minbase --include="$include" --merged-usr "$suite" "$image" "$mirror" "$script"
    echo 'APT::Install-Recommends "false"; Binary::apt::APT::Keep-Downloaded-Packages "true"; APT::Keep-Downloaded-Packages "true";' >"$image/etc/apt/apt.conf.d/90zk0"
    cp --remove-destination --dereference /etc/resolv.conf "$image/etc/resolv.conf" 2>/dev/null || true
    # shellcheck disable=SC2086  # a list
    chroot "$image" apt-get install -y --download-only $needs
    echo booted >"$image/etc/hostname"
    : >"$image/etc/machine-id"
} >"$cache/image.log" 2>&1 9>&- || { tail -n 20 "$cache/image.log" >&2; die "the image could not be made; see $cache/image.log"; }
touch "$image/.zk0-ready"
echo "$image"
