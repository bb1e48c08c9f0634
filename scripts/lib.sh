# shellcheck shell=bash
# What the scripts share: where the project is, how they speak, how an error looks.
# Sourced by the others, never run. An error carries a stable code (EW-...), its cause, and the next command to try.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # read by the scripts that source this
TOOLS="$ROOT/.tools"
export PATH="$TOOLS/bin:$PATH:${HOME:-/root}/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"

# say WHAT TEXT: one line a part, after the script's own name.
say() {
    local script=${0##*/}
    printf '%-10s %-12s %s\n' "${script%.sh}" "$1" "$2"
}

# problem CODE CAUSE CURE: prints an error in the form that every script uses.
problem() {
    printf '%s  %s\n  try: %s\n' "$1" "$2" "$3" >&2
}

# fail CODE CAUSE CURE: prints the error and ends the script.
fail() {
    problem "$@"
    exit 1
}
