#!/usr/bin/env bash
# Builds the programs of the previous state of the project into target/previous/bin, for the tests of an upgrade.
#
# Which state that is stands in tests/previous: a commit, and what people call it. It is moved on with each release. The
# dependencies that are built already are used again (hard links), so only the project's own crates are compiled.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read -r COMMIT NAME <"$ROOT/tests/previous"
readonly OUT="$ROOT/target/previous" BUILT="$ROOT/target/debug"
readonly PROGRAMS=(cloud-hub edge-runtime edgewire)

if [[ -f $OUT/bin/commit && $(<"$OUT/bin/commit") == "$COMMIT" ]]; then
    say previous "$NAME is built"
    exit
fi
if ! git -C "$ROOT" cat-file -e "$COMMIT^{commit}" 2>/dev/null; then
    # A source archive or a shallow clone has no history to build from.
    [[ -d $ROOT/.git && $(git -C "$ROOT" rev-parse --is-shallow-repository) == false ]] &&
        fail EW-PREVIOUS-UNKNOWN "tests/previous names commit $COMMIT, which this repository does not have" \
            "git fetch origin $COMMIT"
    say previous "NOT BUILT: no history here, so upgrades are not tested (git fetch --unshallow)"
    mkdir -p "$OUT/bin"
    echo none >"$OUT/bin/commit"
    exit
fi

rm -rf "$OUT"
mkdir -p "$OUT/source" "$OUT/target/debug" "$OUT/bin"
git -C "$ROOT" archive "$COMMIT" | tar -x -C "$OUT/source"
if [[ -d $BUILT/deps ]]; then
    # Hard links to what cargo never changes in place; what it does, and all that is the project's own, is not shared.
    cp -al "$BUILT/deps" "$BUILT/build" "$OUT/target/debug/"
    cp -a "$BUILT/.fingerprint" "$OUT/target/debug/"
    while read -r package; do
        crate=${package//-/_}
        rm -rf "$OUT/target/debug/deps/"{lib,}"$crate"-* "$OUT/target/debug/"{.fingerprint,build}/{"$package","$crate"}-*
    done < <(grep -h '^name = ' "$ROOT"/{*,modules/*,examples/*}/Cargo.toml | cut -d'"' -f2 | sort -u)
fi
say previous "building the programs of $NAME (${COMMIT:0:7})"
(cd "$OUT/source" && CARGO_TARGET_DIR="$OUT/target" cargo build --quiet --locked --workspace --bins) ||
    fail EW-PREVIOUS-BUILD "the previous state did not build" "see above"
for program in "${PROGRAMS[@]}"; do
    cp "$OUT/target/debug/$program" "$OUT/bin/"
done
rm -rf "$OUT/target" "$OUT/source"
echo "$COMMIT" >"$OUT/bin/commit"
