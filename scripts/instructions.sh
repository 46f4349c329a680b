#!/usr/bin/env bash
# Counts what one call costs under callgrind: instructions, and reads of the
# clock. Unlike nanoseconds these do not depend on what else the machine does.
#
#   scripts/instructions.sh                   bare call and the five-policy stacks
#   scripts/instructions.sh FILTER..          rows whose name contains a filter,
#                                             as `--list` of the benchmark shows
#
# Needs valgrind. CALLS sets how many calls are made (default 2000): each row
# runs with CALLS and with twice as many, and the difference is divided, so that
# start and end of the program do not count. Rows that need a runtime to turn
# timers (a refusal that sleeps) cannot be counted.
set -euo pipefail

cd "$(dirname "$0")/.."
calls=${CALLS:-2000}

command -v valgrind >/dev/null || { echo "valgrind is not installed" >&2; exit 1; }

manifest=benches/peers/Cargo.toml
cargo build --quiet --release --manifest-path "$manifest" --bin instructions
target=$(cargo metadata --no-deps --format-version 1 --manifest-path "$manifest" |
    sed -E 's/.*"target_directory":"([^"]*)".*/\1/')
program=$target/release/instructions

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Prints "instructions clock-reads" of a run with so many calls.
run() {
    valgrind --quiet --tool=callgrind --callgrind-out-file="$work/out" "$program" "$1" "$2" \
        2>"$work/errors" || { cat "$work/errors" >&2; exit 1; }
    # In callgrind's format a call is a line `cfn=(id) name` (the name only where
    # the id is new), followed at some point by `calls=COUNT ..`.
    awk '
        /^totals:|^summary:/ { if (!total) total = $2 }
        /^c?fn=\(/ {
            id = $1; sub(/^c?fn=/, "", id)
            if (NF > 1 && $2 ~ /^_*clock_gettime/) clock[id] = 1
            if ($0 ~ /^cfn=/) callee = id
        }
        /^calls=/ {
            if (callee in clock) { split($1, part, "="); reads += part[2] }
        }
        END { print total + 0, reads + 0 }
    ' "$work/out"
}

mapfile -t rows < <("$program" --list "$@")
[ "${#rows[@]}" -gt 0 ] || { echo "no row matches" >&2; exit 1; }

printf '%-64s %12s %11s\n' "per call" instructions "clock reads"
for row in "${rows[@]}"; do
    read -r once_instructions once_reads < <(run "$row" "$calls")
    read -r twice_instructions twice_reads < <(run "$row" $((2 * calls)))
    awk -v row="$row" -v calls="$calls" \
        -v instructions=$((twice_instructions - once_instructions)) \
        -v reads=$((twice_reads - once_reads)) \
        'BEGIN { printf "%-64s %12.0f %11.2f\n", row, instructions / calls, reads / calls }'
done
