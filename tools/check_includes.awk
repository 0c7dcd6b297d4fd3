# Reads names of files, first every CMakeLists.txt, then every C++ source, and judges what they link and include.

BEGIN {
  # The library behind each outside header that only some folders may use.
  outside["fmt/"] = "fmt::fmt"
  outside["nlohmann/"] = "nlohmann_json::nlohmann_json"
  outside["CLI/"] = "CLI11::CLI11"
  outside["pcre2.h"] = "PkgConfig::PCRE2"
  outside["utf8proc.h"] = "PkgConfig::UTF8PROC"
  outside["zlib.h"] = "PkgConfig::ZLIB"
  outside["zstd.h"] = "PkgConfig::ZSTD"
  outside["webgpu/"] = "nibble_dawn"
  outside["dawn/"] = "nibble_dawn"
  split("data text io quant", without_gpu)
}

function complain(text) { print "error: " text; wrong = 1 }

# The library that an #include needs, "" where none is needed.
function library_of(header,   prefix) {
  if (header ~ /^nibble\/[^\/]+\//) {
    split(header, parts, "/")
    return "nibble_" parts[2]
  }
  for (prefix in outside)
    if (index(header, prefix) == 1) return outside[prefix]
  return ""
}

# What a library links, and what that links in turn.
function reaches(from, to,   key, i, n, list) {
  if (from == to) return 1
  key = from SUBSEP to
  if (key in known) return known[key]
  known[key] = 0
  n = split(links[from], list, " ")
  for (i = 1; i <= n; i++)
    if (reaches(list[i], to)) return known[key] = 1
  return 0
}

# Takes the words of one CMakeLists.txt: what each library links, for itself and for its users, and which sources are named.
function read_cmake(file, folder,   line, text, n, words, i, target, section) {
  text = ""
  while ((getline line < file) > 0) {
    sub(/#.*/, "", line)
    text = text " " line
  }
  close(file)
  gsub(/[()]/, " & ", text)
  n = split(text, words, " ")
  for (i = 1; i <= n; i++) {
    if (words[i] == "nibble_library") { target = "nibble_" words[i + 2]; section = ""; i += 2 }
    else if (words[i] ~ /^(nibble_[a-z_]+|target_link_libraries|add_executable|add_library)$/ && words[i + 1] == "(") {
      target = words[i + 2]; section = words[i] == "target_link_libraries" ? "LINKS" : ""; i += 2
    }
    else if (words[i] == ")") section = ""
    else if (words[i] == "PRIVATE") section = "OWN LINKS"
    else if (words[i] ~ /^(PUBLIC|INTERFACE)$/) section = "LINKS"
    else if (words[i] ~ /^[A-Z]+$/) section = words[i]
    else if (section == "LINKS") links[target] = links[target] " " words[i]
    else if (section == "OWN LINKS") own[target, words[i]] = 1
    if (words[i] ~ /\.cpp$/) built[folder "/" words[i]] = 1
  }
}

function check_include(file, number, library, line,   header, needed) {
  header = line
  sub(/^[ \t]*#[ \t]*include[ \t]*[<"]/, "", header)
  sub(/[>"].*/, "", header)
  if (header ~ /\.\./) complain(file ":" number ": includes " header "; an include names its place from the root, as in nibble/base/error.h.")
  needed = library_of(header)
  if (library != "" && needed != "" && !reaches(library, needed) && !((library, needed) in own))
    complain(file ":" number ": includes " header ", but " library " does not link " needed ".")
}

function check_source(file, library,   line, number, guarded) {
  if (file ~ /\.cpp$/ && !(file in built)) complain(file ": is named in no CMakeLists.txt beside or above it, so it is never built.")
  while ((getline line < file) > 0) {
    number++
    if (line == "#pragma once") guarded = 1
    if (line ~ /^[ \t]*#[ \t]*include/) check_include(file, number, library, line)
  }
  close(file)
  if (file ~ /\.h$/ && !guarded) complain(file ": lacks #pragma once.")
}

/CMakeLists\.txt$/ {
  folder = $0
  sub(/\/CMakeLists\.txt$/, "", folder)
  read_cmake($0, folder)
  next
}

{
  split($0, parts, "/")
  check_source($0, parts[1] == "nibble" ? "nibble_" parts[2] : "")
}

END {
  for (i in without_gpu)
    if (reaches("nibble_" without_gpu[i], "nibble_gpu"))
      complain("nibble/" without_gpu[i] " reaches the GPU through what it links; it must not.")
  exit wrong
}
