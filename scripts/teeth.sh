#!/usr/bin/env bash
# Do the tests bite? Breaks one promise after the other, in a copy, and requires of the test that guards it to fail.
#
# Each patch in tests/teeth breaks one promise, and names it and its test. In a copy of the working tree under target/teeth
# (what is not committed too) it is applied, everything is built, the test is run, and the patch is taken back. A patch
# that no longer applies or builds is an error, as is a test that fails without it. What is built stays in target/teeth.
#
#   scripts/teeth.sh        all of them
#   scripts/teeth.sh 07     one
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly OUT="$ROOT/target/teeth" BUILT="$ROOT/target/debug" TEST_TIMEOUT_S=600
readonly SOURCE="$OUT/source" LOGS="$OUT/logs"
export CARGO_TARGET_DIR="$OUT/target" CARGO_TERM_COLOR=never
# The copy lies inside a repository, of which git would take only what stands below it.
export GIT_CEILING_DIRECTORIES="$OUT"
child='' applied=''

# Nothing outlives the script: neither a test that runs nor a patch in the copy.
end() {
    if [[ -n $child ]]; then
        kill -TERM -- "-$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
        child=''
        # A test of the whole thing that was cut off leaves servers and networks: its ledger names them.
        if [[ -x $CARGO_TARGET_DIR/debug/demo ]]; then "$CARGO_TARGET_DIR/debug/demo" sweep || true; fi
    fi
    undo
}
trap end EXIT
trap 'exit 130' INT TERM HUP

undo() {
    if [[ -n $applied ]]; then
        (cd "$SOURCE" && git apply -R "$applied")
        applied=''
    fi
}

# copy: makes the copy equal to the working tree; a file that is equal keeps its time, so cargo builds what changed.
copy() {
    local file
    git -C "$ROOT" ls-files -z --cached --others --exclude-standard >"$OUT/files" ||
        fail EW-TEETH-NO-GIT "the files of the project are not known: this is no git checkout" "git clone the project"
    mkdir -p "$SOURCE/target"
    (cd "$SOURCE" && find . -path ./target -prune -o -path ./.tools -prune -o -type f -printf '%P\0') |
        sort -z | comm -z -23 - <(sort -z "$OUT/files") |
        while IFS= read -rd '' file; do rm "$SOURCE/$file"; done
    while IFS= read -rd '' file; do
        if [[ ! -f $ROOT/$file ]]; then # removed, and not yet committed
            rm -f "$SOURCE/$file"
            continue
        fi
        cmp -s "$ROOT/$file" "$SOURCE/$file" && continue
        mkdir -p "$(dirname "$SOURCE/$file")"
        cp "$ROOT/$file" "$SOURCE/$file"
    done <"$OUT/files"
    ln -sfn "$ROOT/.tools" "$SOURCE/.tools"
    ln -sfn "$ROOT/target/images" "$SOURCE/target/images"
}

# seed: the dependencies that are built already, by hard links, as scripts/previous.sh does.
seed() {
    [[ -d $BUILT/deps && ! -d $OUT/target ]] || return 0
    mkdir -p "$OUT/seed/debug"
    cp -al "$BUILT/deps" "$BUILT/build" "$OUT/seed/debug/"
    cp -a "$BUILT/.fingerprint" "$OUT/seed/debug/"
    local package crate
    while read -r package; do
        crate=${package//-/_}
        rm -rf "$OUT/seed/debug/deps/"{lib,}"$crate"-* "$OUT/seed/debug/"{.fingerprint,build}/{"$package","$crate"}-*
    done < <(grep -h '^name = ' "$ROOT"/{*,modules/*,examples/*}/Cargo.toml | cut -d'"' -f2 | sort -u)
    mv "$OUT/seed" "$OUT/target"
}

# field FILE NAME: a line of a patch's header.
field() {
    sed -n "/^diff /q; s/^$2: //p" "$1"
}

# watched SECONDS LOG COMMAND...: runs it in the copy, in a group of its own that ends with us.
watched() {
    local seconds=$1 log=$2 status=0
    shift 2
    (cd "$SOURCE" && exec timeout -k 10 "$seconds" "$@") >>"$log" 2>&1 &
    child=$!
    wait "$child" || status=$?
    child=''
    return "$status"
}

# The header's line `test: [NAME=VALUE ...] <what cargo builds> <the test>`, in its parts.
settings=() target=() name=''
split() {
    local words
    read -ra words <<<"$1"
    settings=()
    while [[ ${words[0]} == *=* ]]; do
        settings+=("${words[0]}")
        words=("${words[@]:1}")
    done
    name=${words[-1]}
    target=("${words[@]:0:${#words[@]}-1}")
}

# build TEST LOG: all that the test needs. Tests of the whole thing run the programs.
build() {
    split "$1"
    if [[ " ${target[*]} " =~ \ (e2e|faults)\  ]]; then
        watched 3600 "$2" cargo build --locked --workspace --bins || return
    fi
    watched 3600 "$2" cargo test --locked "${target[@]}" --no-run
}

# run TEST LOG: sets `outcome` to green, red (a test failed, as a test does), or what else became of it.
outcome=''
run() {
    local status=0 passed failed
    split "$1"
    watched "$TEST_TIMEOUT_S" "$2" env "${settings[@]}" cargo test --locked "${target[@]}" "$name" || status=$?
    passed=$(sed -n 's/^test result: .* \([0-9]*\) passed;.*/\1/p' "$2" | awk '{ n += $1 } END { print n + 0 }')
    failed=$(sed -n 's/^test result: FAILED\..* \([0-9]*\) failed;.*/\1/p' "$2" | awk '{ n += $1 } END { print n + 0 }')
    if ((status == 0 && passed > 0)); then
        outcome=green
    elif ((status != 0 && failed > 0)); then
        outcome=red
    elif ((status == 0)); then
        outcome='no such test'
    else
        outcome="ended with $status"
    fi
}

mkdir -p "$LOGS"
exec {lock}>"$OUT/lock"
flock -n "$lock" || fail EW-TEETH-BUSY "another scripts/teeth.sh works in $OUT" "wait for it"
patches=("$ROOT"/tests/teeth/"${1:-}"*.patch)
[[ -f ${patches[0]} ]] || fail EW-TEETH-UNKNOWN "there is no tooth ${1:-}" "ls tests/teeth"
copy
seed

declare -A sound=()
for patch in "${patches[@]}"; do
    test=$(field "$patch" test)
    [[ -n ${sound[$test]:-} ]] && continue
    log="$LOGS/without-$(basename "$patch" .patch).log"
    : >"$log"
    say without "$test"
    build "$test" "$log" ||
        fail EW-TEETH-BUILD "the copy does not build, without any patch" "tail $log"
    run "$test" "$log"
    [[ $outcome == green ]] ||
        fail EW-TEETH-BASE "without any patch: $outcome: $test" "see $log; mend that first"
    sound[$test]=yes
done

wrong=0
printf '%-36s %-7s %7s  %s\n' TOOTH RESULT SECONDS TEST
for patch in "${patches[@]}"; do
    tooth=$(basename "$patch" .patch) test=$(field "$patch" test) began=$SECONDS
    log="$LOGS/$tooth.log"
    : >"$log"
    if ! (cd "$SOURCE" && git apply "$patch") 2>>"$log"; then
        result=ROTTEN
    else
        applied=$patch
        if ! build "$test" "$log"; then
            result=ROTTEN
        else
            run "$test" "$log"
            case $outcome in
                red) result=red ;;
                green) result=GREEN ;;
                *) result=BROKEN ;;
            esac
        fi
        undo
    fi
    printf '%-36s %-7s %7d  %s\n' "$tooth" "$result" $((SECONDS - began)) "$test"
    if [[ $result != red ]]; then
        wrong=$((wrong + 1))
        case $result in
            ROTTEN) problem EW-TEETH-ROTTEN "$tooth no longer applies or builds" "see $log; make the patch anew" ;;
            GREEN) problem EW-TEETH-GREEN "without this the test stays green: $(field "$patch" promise)" \
                "strengthen the test: $test" ;;
            *) problem EW-TEETH-BROKEN "$tooth: the test did not fail as a test does: $outcome" "see $log" ;;
        esac
    fi
done
((wrong == 0)) || fail EW-TEETH-WRONG "$wrong of ${#patches[@]} promises are not held by their test" "see above"
say "done" "each of ${#patches[@]} promises is held by its test, in $((SECONDS / 60)) min"
