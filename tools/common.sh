# What the scripts share; to be sourced. Messages are whole sentences, and whatever is long goes to a log file.

set -euo pipefail
export LC_ALL=C

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
build_dir=$root/build
dependency_list=$root/tools/dependencies.txt

# Prints each argument as a line.
say() { printf '%s\n' "$@"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The packages of one set of the dependency list, one a line.
packages_of() { awk -v set="$1" '$1 == set { print $2 }' "$dependency_list"; }

tested_version() { awk -v package="$1" '$2 == package { print $3 }' "$dependency_list"; }

# minutes SECONDS: as 3:07.
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# The first complaint of apt in a log, without its letter.
apt_complaint() {
  local complaint
  complaint=$(sed -n 's/^[EW]: *//p' "$1" | head -n 1)
  printf '%s' "${complaint:-apt gave no reason}"
}

# watch LOG: shows the last line of a log while this script runs; in a terminal one line that changes, else one each 15 s.
watch() {
  local log=$1 last width start=$SECONDS
  width=$(tput cols 2>/dev/null || printf 80)
  while sleep 1 >/dev/null && kill -0 $$ 2>/dev/null; do
    last=$(tr '\r' '\n' <"$log" | awk 'NF { line = $0 } END { print line }')
    if [[ -t 1 ]]; then
      printf '\r\033[K%s' "${last:0:width-1}"
    elif (((SECONDS - start) % 15 == 0)); then
      printf '  %d s: %s\n' $((SECONDS - start)) "$last"
    fi
  done
}

# logged LOG COMMAND...: runs a long command, shows how far it is and keeps its output in the log.
logged() {
  local log=$1 watcher status=0
  shift
  : >"$log"
  watch "$log" &
  watcher=$!
  "$@" </dev/null >>"$log" 2>&1 || status=$?
  { kill "$watcher" && wait "$watcher"; } 2>/dev/null || true
  [[ ! -t 1 ]] || printf '\r\033[K'
  return $status
}
