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
