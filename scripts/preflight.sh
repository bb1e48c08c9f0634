#!/usr/bin/env bash
# Names what this machine lacks for running Edgewire, each with its cure, before anything is compiled or installed.
#
# It tries the real thing in throw-away namespaces (an overlay mount, a cgroup, a veth pair, a bridge, an nft table) and
# leaves nothing behind. All problems are told at once; each has a stable code. What scripts/setup.sh installs is not
# its business: a check that needs an absent tool is left to the next run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly DISK_FREE_MIN_GIB=8
readonly MEMORY_MIN_GIB=3

problems=0
checks=0

# check CODE CAUSE CURE COMMAND...: runs the command; tells the problem when it fails.
check() {
    local code=$1 cause=$2 cure=$3
    shift 3
    checks=$((checks + 1))
    if ! "$@" >/dev/null 2>&1; then
        problem "$code" "$cause" "$cure"
        problems=$((problems + 1))
    fi
}

have() { command -v "$1" >/dev/null; }

is_root() { [ "$(id -u)" -eq 0 ]; }

is_known_machine() { [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; }

# The lowest version stands once, in Cargo.toml.
rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

rust_found() { rustc --version 2>/dev/null | cut -d' ' -f2; }

rust_is_new_enough() {
    local found
    found=$(rust_found)
    [ -n "$found" ] && [ "$(printf '%s\n' "$(rust_wanted)" "$found" | sort -V | head -n 1)" = "$(rust_wanted)" ]
}

disk_free_gib() { df --output=avail -BG "$ROOT" | tail -n 1 | tr -dc 0-9; }

# A tree that is built already needs little more.
disk_is_enough() { [ -d "$ROOT/target/debug/deps" ] || [ "$(disk_free_gib)" -ge "$DISK_FREE_MIN_GIB" ]; }

memory_gib() { awk '/^MemTotal/ { printf "%d", $2 / 1048576 + 0.5 }' /proc/meminfo; }

memory_is_enough() { [ "$(memory_gib)" -ge "$MEMORY_MIN_GIB" ]; }

can_unshare() { unshare --mount --net true; }

# Containers' root file systems lie under the project's directory, so that is where an overlay must be possible.
can_overlay() {
    mkdir -p "$scratch"/{lower,upper,work,merged}
    unshare --mount mount -t overlay overlay \
        -o "lowerdir=$scratch/lower,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/merged"
}

# Version 2 in one tree, or version 1 with a tree for each controller.
can_cgroup() {
    local top=/sys/fs/cgroup name="edgewire-preflight-$$"
    if [ -f "$top/cgroup.controllers" ]; then
        grep -qw memory "$top/cgroup.controllers" && mkdir "$top/$name" && rmdir "$top/$name"
        return
    fi
    local controller
    for controller in memory cpu pids; do
        mkdir "$top/$controller/$name" && rmdir "$top/$controller/$name" || return 1
    done
}

can_veth_and_bridge() {
    unshare --net sh -ec 'ip link add ewp0 type veth peer name ewp1; ip link add ewp2 type bridge; ip link set ewp0 master ewp2'
}

can_nft() {
    unshare --net sh -ec 'nft add table inet ewp
        nft add chain inet ewp cut "{ type filter hook input priority 0 ; }"
        nft add rule inet ewp cut iifname ewp0 counter drop'
}

can_masquerade() {
    unshare --net sh -ec 'nft add table ip ewp
        nft add chain ip ewp out "{ type nat hook postrouting priority 100 ; }"
        nft add rule ip ewp out masquerade'
}

check EW-PRE-MACHINE "this is $(uname -s) on $(uname -m); Edgewire's tools are pinned for Linux on x86_64" \
    "use an x86_64 Linux machine (Debian 12 is what it is tried on)" is_known_machine
check EW-PRE-CARGO "cargo is not on the PATH" \
    "install Rust from https://rustup.rs, then open a new shell" have cargo
if have rustc; then
    check EW-PRE-RUST "rustc is $(rust_found), and the workspace needs $(rust_wanted) or newer" \
        "rustup update stable" rust_is_new_enough
fi
check EW-PRE-DISK "$(disk_free_gib) GiB are free under $ROOT; a build takes up to $DISK_FREE_MIN_GIB GiB" \
    "free some space, or clone the project to a larger disk" disk_is_enough
check EW-PRE-MEMORY "the machine has $(memory_gib) GiB of memory; building and running it takes $MEMORY_MIN_GIB GiB" \
    "use a larger machine" memory_is_enough
check EW-PRE-ROOT "running as $(id -un), and containers and network namespaces need root" \
    "run the same command with sudo" is_root

# The rest needs root to be told at all.
if is_root; then
    mkdir -p "$ROOT/target"
    scratch=$(mktemp -d "$ROOT/target/preflight.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    check EW-PRE-CGROUP "no cgroup can be made under /sys/fs/cgroup (neither version 2 nor 1)" \
        "mount it writable; in a container, start that with --privileged --cgroupns=host" can_cgroup
    check EW-PRE-NAMESPACE "no mount and network namespace can be made" \
        "give the machine CAP_SYS_ADMIN; in a container, start that with --privileged" can_unshare
    check EW-PRE-OVERLAY "no overlay file system can be mounted under $ROOT" \
        "modprobe overlay; or clone the project to ext4 or xfs (an overlay cannot lie on an overlay)" can_overlay
    if have ip; then
        check EW-PRE-VETH "the kernel makes no veth pair or bridge" "modprobe veth bridge" can_veth_and_bridge
    fi
    if have nft; then
        check EW-PRE-NFT "the kernel takes no nftables rule" "modprobe nf_tables nft_counter" can_nft
        check EW-PRE-NAT "the kernel does no masquerading" "modprobe nft_masq nft_chain_nat" can_masquerade
    fi
fi

if [ "$problems" -gt 0 ]; then
    exit 1
fi
say checks "$checks passed"
