#!/usr/bin/env bash
# Builds the example workloads and puts each into an OCI image of its own, with no registry and no daemon:
# target/images/{sensor,display,busybox}.tar, an OCI image layout each, as `ctr images import` reads it.
#
# The binaries are static, so an image holds one file. They are built in a target directory of their own: a static
# C library is chosen by RUSTFLAGS, and in the common one that would compile the whole workspace again.
# The same inputs make the same bytes, so an image's digest says what is in it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly OUT="$ROOT/target/images"
readonly STATIC="$ROOT/target/static"
TARGET="$(uname -m)-unknown-linux-gnu"

cd "$ROOT"
mkdir -p "$OUT"

# --target keeps the flags away from build scripts and procedural macros, which cannot be static.
CARGO_TARGET_DIR="$STATIC" RUSTFLAGS="-C target-feature=+crt-static" \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=z CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_PANIC=abort \
    cargo build --quiet --locked --release --target "$TARGET" -p sensor -p display ||
    fail EW-IMAGES-BUILD "the example workloads did not build" \
        "see above; a missing libc.a comes with: apt-get install libc6-dev"

# image NAME REFERENCE BINARY: writes the image, when it is another than the one there.
image() {
    python3 "$ROOT/scripts/oci-image.py" "$OUT/$1.tar" "$2" "$3"
    say "$1" "$2 in ${OUT#"$ROOT"/}/$1.tar ($(stat -c %s "$OUT/$1.tar" | numfmt --to=iec)B)"
}

image sensor edgewire.local/sensor:demo "$STATIC/$TARGET/release/sensor"
image display edgewire.local/display:demo "$STATIC/$TARGET/release/display"
image busybox docker.io/library/busybox:demo /bin/busybox
