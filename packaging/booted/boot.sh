#!/usr/bin/env bash
# Boots a throw-away copy of a system image under its own systemd, on a machine that need not run one. Not for services: it ends with its caller.
#   packaging/booted/boot.sh IMAGE SCRATCH      (SCRATCH: an empty folder; what the system writes goes there)
# Stays in the foreground, the system's console on stdout. Ending this process ends everything inside.
# The system has a network of its own with nothing but loopback.
set -euo pipefail
image=$1 scratch=$2
# --pid: without it nspawn fails. The private cgroup2 mount: systemd 257 takes nothing else, and the host may have version 1.
exec unshare --mount --cgroup --pid --fork --kill-child --mount-proc bash -c '
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
    exec systemd-nspawn --quiet --directory="$2/root" --machine="$3" --boot --register=no --keep-unit --link-journal=no \
        --console=pipe --private-network --resolv-conf=off --timezone=off --capability=all --system-call-filter=bpf
' boot "$image" "$scratch" "zk0-booted-$$"
