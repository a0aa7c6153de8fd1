#!/usr/bin/env bash
# Makes the Debian 13 systems that the booted tests start from, once, outside the repository, and prints a folder.
#   packaging/booted/image.sh [bare|ready]
# bare: a minimal system, with the packages that zk0d depends on in apt's cache, so that a test installs them as an owner would, without a
# network. ready (default): the same with those packages installed, the software renderer that a virtual arm's cameras need, and what the
# tests look with: autopkgtest, man, shells. The mirror is the one that this machine's own apt uses.
set -euo pipefail
cd "$(dirname "$0")"
which=${1:-ready}
suite=trixie
base="minbase plus systemd, dbus, polkit, udev: what any Ubuntu or Debian desktop or server has"
include=systemd,systemd-sysv,dbus,polkitd,udev,libpam-systemd,procps,kmod
needs=$(sed -n '/^Package:/,$p' ../deb/debian/control | grep -oE 'python3(-[a-z0-9]+)*' | sort -u | grep -v '^python3-all')
cache=${XDG_CACHE_HOME:-$HOME/.cache}/zk0-booted
renderer="libegl1 libegl-mesa0 libgl1 libopengl0 libgl1-mesa-dri"
tools="autopkgtest dpkg-dev man-db bash-completion fish zsh"
key=$(printf '%s\n' "$suite" "$base" "$include" "$needs" "$renderer" "$tools" 5 | sha256sum | cut -c1-12)
image=$cache/debian-$suite-$key
die() { printf 'booted: %s\n' "$*" >&2; exit 1; }
finish() { touch "$image/done"; echo "$image/$which"; exit 0; }
case $which in bare | ready) ;; *) die "there is no image '$which'" ;; esac
if [ -e "$image/done" ]; then finish; fi

[ "$(id -u)" = 0 ] || die "must be root to make a system image"
{ command -v debootstrap && command -v systemd-nspawn; } >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap systemd-container; } </dev/null >/dev/null 2>&1 ||
    die "debootstrap is missing: apt-get install debootstrap systemd-container"
# shellcheck disable=SC2016  # the dollar signs are apt's
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n1)
[ -n "$mirror" ] || die "this machine's apt has no Debian source to build the image from"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ -e "$image/done" ]; then finish; fi
rm -rf "$image"   # a half-made one
for old in "$cache/debian-$suite"-*; do    # of older recipes; not one that another checkout used today
    if [ -z "$(find "$old/done" -mtime -1 2>/dev/null)" ]; then rm -rf "$old"; fi
done
root=$image/bare
mkdir -p "$root"
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid   # every suite is a link to this one
{
    debootstrap --variant=minbase --include="$include" --merged-usr "$suite" "$root" "$mirror" "$script"
    echo 'APT::Install-Recommends "false"; Binary::apt::APT::Keep-Downloaded-Packages "true"; APT::Keep-Downloaded-Packages "true";' >"$root/etc/apt/apt.conf.d/90zk0"
    cp --remove-destination --dereference /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
    # shellcheck disable=SC2086  # a list
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y --download-only $needs
    echo booted >"$root/etc/hostname"
    : >"$root/etc/machine-id"
    cp -a "$root" "$image/ready"
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive chroot "$image/ready" apt-get install -y $needs $renderer $tools
    rm -f "$image"/ready/var/cache/apt/archives/*.deb
} >"$cache/image.log" 2>&1 9>&- || { tail -n 20 "$cache/image.log" >&2; die "the image could not be made; see $cache/image.log"; }
finish
