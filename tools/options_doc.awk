# One verb's --help as a paragraph and tables of its options, for tools/options_doc.

function flush() {
  if (name == "") return
  gsub(/\|/, "\\|", text)
  if (condition != "") text = text ". " condition
  printf "| `%s` | %s | %s | %s |\n", name, value, standard, text
  name = condition = ""
}
# "UINT:INT in [1 - 256]=16", "TEXT:{a,b}=a", "TEXT REQUIRED", "TEXT ..."
function describe(spec,   several, at) {
  value = standard = ""
  if (match(spec, /(Needs|Excludes): .*$/)) {
    condition = substr(spec, RSTART)
    sub(/ *(Needs|Excludes): .*$/, "", spec)
  }
  several = sub(/ *\.\.\.$/, "", spec)
  if (sub(/ *REQUIRED/, "", spec)) standard = "required"
  at = match(spec, /=[^=]*$/)
  if (at) {
    standard = substr(spec, at + 1)
    spec = substr(spec, 1, at - 1)
    gsub(/[][]/, "", standard)
    standard = "`" standard "`"
  }
  if (match(spec, /\{.*\}/)) {
    value = substr(spec, RSTART + 1, RLENGTH - 2)
    gsub(/,/, ", ", value)
  } else if (match(spec, /in \[.*\]/)) {
    value = substr(spec, RSTART + 4, RLENGTH - 5)
    split(value, bound, " - ")
    value = bound[2] + 0 < 1e9 ? bound[1] " to " bound[2] : "from " bound[1]
  } else if (spec ~ /NONNEGATIVE/) {
    value = "number from 0"
  } else if (spec ~ /^U?INT/) {
    value = "whole number"
  } else if (spec ~ /^FLOAT/) {
    value = "number"
  } else if (spec ~ /^TEXT/) {
    value = "text"
  }
  if (several) value = value ", several"
}
function heading(title) {
  flush()
  if (title != "") printf "\n**%s**\n", title
  printf "\n| option | value | default | meaning |\n| --- | --- | --- | --- |\n"
  headed = 1
}
/^Usage:/ { body = 1; next }
/^Subcommands:/ { flush(); exit }
# What a verb takes as input: "/reset  begins anew".
!body && match($0, /^\/[^ ]+( [A-Zon]+)? +/) {
  item = substr($0, 1, RLENGTH)
  rest = substr($0, RLENGTH + 1)
  sub(/ +$/, "", item)
  print (listed++ ? "" : "\n") "- `" item "`: " rest
  next
}
!body { if ($0 != "") print (blank++ ? "" : "\n") $0; next }
match($0, /^ *\[Option Group: .*\]/) {
  title = $0
  gsub(/^ *\[Option Group: |\].*$/, "", title)
  pending = title
  flush()
  headed = 0
  next
}
/^ *Options:/ { next }
match($0, /^ +-/) && RLENGTH < 12 {
  flush()
  line = $0
  sub(/^ +/, "", line)
  cut = match(line, /  +/)
  spec = cut ? substr(line, 1, cut - 1) : line
  text = cut ? substr(line, cut + RLENGTH) : ""
  at = index(spec, " ")
  name = at ? substr(spec, 1, at - 1) : spec
  rest = at ? substr(spec, at + 1) : ""
  if (name == "-h,--help") { name = ""; next }
  if (!headed) { held = name; name = ""; heading(pending); name = held; pending = "" }
  describe(rest)
  next
}
name != "" && /^ +[^ ]/ { sub(/^ +/, ""); text = text (text == "" ? "" : " ") $0 }
END { flush() }
