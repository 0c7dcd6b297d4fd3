#!/usr/bin/env bash
# readme_test.sh NIBBLE: runs the commands that README.md and the examples mark with "sh run", one after the other as a
# reader would, and reads every example row of docs/formats.md.

set -euo pipefail
nibble=$(realpath "$1")
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
mkdir build
ln -s "$nibble" build/nibble
for folder in models data tests examples; do ln -s "$root/$folder" "$folder"; done

# The lines of a document's blocks that begin with ```KIND.
blocks() { awk -v fence="\`\`\`$1" '$0 == fence { on = 1; next } /^```/ { on = 0 } on' "$2"; }

for document in README.md examples/define/README.md; do
  blocks 'sh run' "$root/$document" >commands.sh
  [[ -s commands.sh ]] || { echo "FAILED: $document marks no command with \"sh run\"." && exit 1; }
  echo "== $document"
  bash -euxo pipefail commands.sh || { echo "FAILED: a command of $document does not work as written." && exit 1; }
done

echo "== docs/formats.md"
rows=0
while read -r line; do
  [[ $line == *'"step"'* ]] && continue
  printf '%s\n' "$line" >row.jsonl
  loss=sft
  [[ $line == *'"chosen"'* ]] && loss=dpo
  build/nibble train --model models/tiny-qwen3 --data row.jsonl --loss $loss --output nowhere --dry-run >log 2>&1 ||
    { cat log && echo "FAILED: this row of docs/formats.md cannot be read: $line" && exit 1; }
  rows=$((rows + 1))
done < <(blocks json "$root/docs/formats.md")
((rows >= 8)) || { echo "FAILED: only $rows example rows were found in docs/formats.md." && exit 1; }
