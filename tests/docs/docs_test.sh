#!/usr/bin/env bash
# docs_test.sh NIBBLE: docs/options.md is what the program's --help says, every path that a document names exists, and so
# does every test that docs/model-state.md and docs/formats.md name.

set -euo pipefail
nibble=$(realpath "$1")
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
failures=0

if ! diff -u docs/options.md <("tools/options_doc" "$nibble"); then
  echo "FAILED: docs/options.md is not what --help says; make it anew: tools/options_doc build/nibble >docs/options.md"
  failures=1
fi

for document in README.md HACKING.md docs/*.md examples/*/README.md; do
  folder=$(dirname "$document")
  # Words in backticks that begin with a folder of the repository and have no part to be filled in (OP, <x>, *).
  for path in $(grep -oE '`(nibble|tests|tools|bench|docs|cmake|examples|models|data)/[^` ]*`' "$document" | tr -d '`' |
    grep -vE '[A-Z<*]' | sort -u); do
    [[ -e $path ]] || { echo "FAILED: $document names $path, which is not there." && failures=1; }
  done
  for link in $(grep -oE '\]\([^)#:]+\)' "$document" | sed 's/^](//; s/)$//' | sort -u); do
    [[ -e $folder/$link ]] || { echo "FAILED: $document links to $link, which is not there." && failures=1; }
  done
done

# Suite.Name and Suite.*, and scripts of tests/interop.
for document in docs/model-state.md docs/formats.md; do
  for name in $(grep -oE '\b[A-Z][A-Za-z0-9_]+\.([A-Z][A-Za-z0-9_]+|\*)' "$document" | sort -u); do
    test=${name#*.}
    [[ $test != '*' ]] || test='[A-Za-z0-9_]+'
    grep -rqE "^TEST(_F|_P)?\(${name%%.*}, $test\)" tests --include='*.cpp' ||
      { echo "FAILED: $document names the test $name, which is not there." && failures=1; }
  done
  for script in $(grep -oE '`[a-z_]+\.py`' "$document" | tr -d '`' | sort -u); do
    [[ -e tests/interop/$script ]] || { echo "FAILED: $document names the script $script, which is not in tests/interop." && failures=1; }
  done
done
exit $failures
