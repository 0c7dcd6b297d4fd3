#!/usr/bin/env bash
# Shows that the checks of layout and sizes find what they are for, each on a small tree with one fault.

set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0

# A sound tree: text links base, gpu links base and Dawn.
make_tree() {
  rm -rf "$scratch/tree" && mkdir -p "$scratch/tree"/nibble/{base,gpu,kernels,text} "$scratch/tree/tests/text" && cd "$scratch/tree"
  printf 'nibble_library(base\n  SOURCES a.cpp\n  LINKS fmt::fmt)\n' >nibble/base/CMakeLists.txt
  printf '#include <fmt/format.h>\n' >nibble/base/a.cpp
  printf '#pragma once\n' >nibble/base/a.h
  printf 'nibble_library(gpu SOURCES g.cpp LINKS nibble_base)\n' >nibble/gpu/CMakeLists.txt
  printf 'target_link_libraries(nibble_gpu PRIVATE nibble_dawn)\n' >>nibble/gpu/CMakeLists.txt
  printf '#include <webgpu/webgpu_cpp.h>\n#include "nibble/base/a.h"\n' >nibble/gpu/g.cpp
  printf 'nibble_library(kernels SOURCES k.cpp LINKS nibble_gpu)\n' >nibble/kernels/CMakeLists.txt
  printf '#include "nibble/gpu/g.h"\n' >nibble/kernels/k.cpp
  printf 'nibble_library(text SOURCES t.cpp LINKS nibble_base)\n' >nibble/text/CMakeLists.txt
  printf '#include <fmt/core.h>\n#include "nibble/base/a.h"\nint f(int x) {\n  return x;\n}\n' >nibble/text/t.cpp
  printf 'nibble_test(text SOURCES t_test.cpp LINKS nibble_text LABELS unit)\n' >tests/text/CMakeLists.txt
  printf '#include "nibble/text/t.h"\n' >tests/text/t_test.cpp
}

# refuses CHECK WORDS: the check fails on the tree and its message holds the words.
refuses() {
  local message
  if message=$("$root/tools/$1" "${3:-$scratch/tree}"); then
    message="nothing was refused"
  elif [[ $message == *"$2"* ]]; then
    return
  fi
  printf 'FAILED: %s should have said "%s"; it said: %s\n' "$1" "$2" "$message"
  failures=1
}

accepts() {
  "$root/tools/$1" "${2:-$scratch/tree}" || { printf 'FAILED: %s refused a sound tree.\n' "$1" && failures=1; }
}

lines() { for ((i = 0; i < $1; i++)); do printf '  x();\n'; done; }

make_tree && accepts check_includes && accepts check_sizes

make_tree && printf '#include "nibble/gpu/g.h"\n' >>nibble/text/t.cpp
refuses check_includes "nibble/text/t.cpp:6: includes nibble/gpu/g.h, but nibble_text does not link nibble_gpu."

make_tree && printf '#include <webgpu/webgpu.h>\n' >>nibble/base/a.h
refuses check_includes "nibble_base does not link nibble_dawn"

make_tree && printf '#include <webgpu/webgpu.h>\n' >>nibble/kernels/k.cpp
refuses check_includes "nibble_kernels does not link nibble_dawn"

make_tree && printf '#include <nlohmann/json.hpp>\n' >>nibble/text/t.cpp
refuses check_includes "nibble_text does not link nlohmann_json::nlohmann_json"

make_tree && printf '#include "../base/a.h"\n' >>nibble/text/t.cpp
refuses check_includes "an include names its place from the root"

make_tree && printf 'nibble_library(text SOURCES t.cpp LINKS nibble_gpu)\n' >nibble/text/CMakeLists.txt
refuses check_includes "nibble/text reaches the GPU"

make_tree && touch nibble/text/forgotten.cpp
refuses check_includes "nibble/text/forgotten.cpp: is named in no CMakeLists.txt"

make_tree && touch nibble/text/unguarded.h
refuses check_includes "nibble/text/unguarded.h: lacks #pragma once"

make_tree && lines 400 >nibble/text/long.wgsl
refuses check_sizes "nibble/text/long.wgsl: has 400 lines"

make_tree && { printf 'void f(int x) {\n' && lines 58 && printf '}\n'; } >>nibble/text/t.cpp
accepts check_sizes

make_tree && { printf 'void f(int x) {\n' && lines 59 && printf '}\n'; } >>nibble/text/t.cpp
refuses check_sizes "nibble/text/t.cpp:6: has a function of 61 lines"

make_tree && { printf 'struct S {\n  void f() const {\n' && lines 61 | sed 's/^/  /' && printf '  }\n};\n'; } >>nibble/text/t.cpp
refuses check_sizes "nibble/text/t.cpp:7: has a function of 63 lines"

make_tree && { printf 'S::S(int x,\n     int y)\n    : x_(x), y_(y) {\n' && lines 58 && printf '}\n'; } >>nibble/text/t.cpp
refuses check_sizes "nibble/text/t.cpp:6: has a function of 62 lines"

printf 't.cpp:5: Skipped\nNo disk.\n\n[  SKIPPED ] A.B (0 ms)\n[  SKIPPED ] 1 test, listed below:\n' >"$scratch/log"
[[ $("$root/tools/skipped" "$scratch/log") == *"Skipped:"*"A.B: No disk." ]] || { printf 'FAILED: skipped left out a test.\n' && failures=1; }
accepts skipped "$scratch/log" >/dev/null

printf 't.cpp:5: Skipped\n\n[  SKIPPED ] A.B (0 ms)\n' >"$scratch/log"
refuses skipped "A.B: no reason is given" "$scratch/log"

exit $failures
