#!/usr/bin/env bash
# Boots a throw-away copy of a system image under its own systemd, on a machine that need not run one. Not for services: it ends with its caller.
#   packaging/booted/boot.sh IMAGE SCRATCH NAME [FLAG…]  boot; SCRATCH: an empty folder; what the system writes goes there; flags are nspawn's
#   packaging/booted/boot.sh --clean NAME                take away the control groups that it left
# Stays in the foreground, the system's console on stdout. Ending this process ends everything inside.
# The system has a network of its own with nothing but loopback.
set -euo pipefail
export groups; groups=$(mktemp -d)     # where this script sees version 2 of the control groups; the host may have them nowhere, or elsewhere
if [ "$1" = --clean ]; then
    unshare --mount bash -c '
        mount -t cgroup2 none "$groups"
        [ ! -d "$groups/$1" ] || find "$groups/$1" -depth -type d -exec rmdir {} +
    ' clean "$2"
    rmdir "$groups"
    exit
fi
# A control group of its own, made before the cgroup namespace so that it becomes the root of that: what an earlier system left must not be
# found by the next one (a unit whose group was left frozen stops the whole new systemd).
# --pid: without it nspawn fails. The private cgroup2 mount: systemd 257 takes nothing else, and the host may have version 1.
exec unshare --mount bash -c '
    set -eu
    mount -t cgroup2 none "$groups"
    mkdir "$groups/$3"
    echo $$ >"$groups/$3/cgroup.procs"
    umount "$groups"
    rmdir "$groups"
    exec unshare --mount --cgroup --pid --fork --kill-child --mount-proc bash -c "$0" boot "$@"
' '
    set -eu
    mount --make-rprivate /
    if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
        umount -R /sys/fs/cgroup 2>/dev/null || umount -R -l /sys/fs/cgroup
    fi
    mount -t cgroup2 none /sys/fs/cgroup
    mount -t tmpfs -o size=75% none "$2"
    mkdir "$2/upper" "$2/work" "$2/root"
    mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" none "$2/root"
    # The last two flags: without them DevicePolicy= is silently not enforced inside.
    root=$2/root name=$3
    shift 3
    # 133: the system reboots, and nspawn leaves that to its caller.
    status=133
    while [ "$status" = 133 ]; do
        status=0
        systemd-nspawn --quiet --directory="$root" --machine="$name" "$@" --boot --register=no --keep-unit --link-journal=no \
            --console=pipe --private-network --resolv-conf=off --timezone=off --capability=all --system-call-filter=bpf || status=$?
    done
    exit "$status"
' "$@"
