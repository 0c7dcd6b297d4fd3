"""Expressions of templates, one a line, that make_jinja_cases.py has jinja2 evaluate."""

EXPRESSIONS = r"""
1 + 2 * 3
2 ** 3 ** 2
-2 ** 2
7 / 2
7 // 2
-7 // 2
7 % 3
-7 % 3
7 % -3
7.5 // 2
-7.5 % 2
-7.5 // 2
1 / 3
4 / 2
2 ** -1
2.0 ** 3
2 ** 0.5
1e16
1e15
123456789012345678.0
1.5e-5
0.0001
0.00001
1e22
1.0
-0.0
100000000000000000000.0
0.1 + 0.2
3.14159
1_000
0x1f
0b101
0o17
true + 1
"a" + "b"
"a" * 3
[1] * 2
[1, 2] + [3]
(1, 2) + (3,)
(1,)
()
[]
{}
{"a": 1, "b": [1, "x"], 3: none}
{"a": {"b": true}}["a"]["b"]
"a" ~ 1 ~ none ~ true ~ 1.0 ~ [1]
"x" ~ missing ~ "y"
"%s and %d" % ("x", 3)
"%5.2f|%-4s|%04d|%r|%%" % (3.14159, "ab", 42, "q")
"%s" % number
1 < 2 < 3
1 < 2 > 3
1 == 1.0
"a" == 'a'
"a" != "b"
[1, 2] == [1, 2]
[1, 2] < [1, 3]
"abc" < "abd"
"Z" < "a"
none == false
0 == false
1 in items
5 in items
5 not in items
"w" in text
"é" in text
"a" in mapping
2 in {"x": 2}
"x" in missing
not 1
not missing
1 and 0
0 or "x"
"" or none
1 and "y"
not 1 == 2
not (1 and 0) or 0
"yes" if flag else "no"
"yes" if not flag else "no"
"yes" if missing
"a" if false else "b" if false else "c"
text[0]
text[-1]
text[0:5]
text[-4:]
text[::-1]
text[2:8:2]
text[::2]
text[100:]
text[-100:3]
text[3:1]
text[5:1:-1]
items[0]
items[-1]
items[1:]
items[:-1]
items[::-1]
items[5:]
items[99]
items[1:3]
items[-1:0:-1]
items[:2]
mapping.b
mapping["b"]
mapping['items']
mapping.items() | list
mapping.keys() | list
mapping.values() | list
mapping.get("b")
mapping.get("z")
mapping.get("z", 5)
mapping.c.d
mapping["c"]["d"]
mapping.z
mapping.z is defined
mapping.a.0
nothing.x
nothing.x is defined
number.x is defined
missing
missing is defined
missing | default("d")
empty | default("d")
empty | default("d", true)
empty | default("d", boolean=true)
none | default("d")
missing | length
missing | list
missing | trim
missing | upper
missing | join(",")
missing | items | list
missing | first
missing | string
missing | default
[missing] | length
text | upper
text | lower
text | title
text | capitalize
text | length
text | reverse
"straße" | upper
"ÀÉ" | lower
"hello wORLD-foo (bar" | title
"hello wORLD-foo (bar".title()
"hELLO there".capitalize()
spaced | trim
spaced.strip()
spaced.lstrip()
spaced.rstrip()
"xxaxx".strip("x")
"xyaxy".lstrip("yx")
"xyaxy".rstrip("yx")
"xxaxx" | trim("x")
"\n\na\n".strip('\n')
"\u00a0a\u2003".strip()
spaced.split()
"a,b,,c".split(",")
"a,b,,c".split(",", 1)
"a  b c".split(" ")
"a b c d".split(none, 2)
"a b c d".rsplit(" ", 1)
"a b  c".rsplit(none, 1)
"a</think>b</think>c".split("</think>")[-1]
"a</think>b</think>c".split("</think>")[0]
"l1\nl2\r\nl3".splitlines()
"l1\nl2\n".splitlines(true)
"a-b-c".partition("-")
"a-b-c".rpartition("-")
"abc".partition("-")
"abc".startswith("ab")
"abc".startswith(("x", "a"))
"abc".endswith("bc")
"abc".replace("b", "xx")
"aaaa".replace("a", "b", 2)
"abc".replace("", "-")
"aaa" | replace("a", "bb")
"aaa" | replace("a", "b", 2)
text.find("w")
text.find("zzz")
text.rfind("ö")
text.find("ß", 4)
"abcabc".find("b", 2)
"abcabc".count("bc")
text.index("w")
"-".join(["a", "b"])
"{} and {}".format("a", 2)
"{1}{0}{x}{{}}".format("a", "b", x=3)
"abc".upper()
"ABC".lower()
"12".isdigit()
"1a".isdigit()
"".isdigit()
"ab".isalpha()
"AB".isupper()
"ab".islower()
"prefix-x".removeprefix("prefix-")
"x.txt".removesuffix(".txt")
items | length
items | count
items | join
items | join(", ")
items | join(", ") | length
people | join("; ", attribute="name")
items | first
items | last
[] | first
items | list
"abc" | list
mapping | list
items | sort
items | sort(reverse=true)
words | sort
words | sort(case_sensitive=true)
people | sort(attribute="age") | map(attribute="name") | list
items | unique | list
words | unique | list
items | sum
[1.5, 2] | sum
people | sum(attribute="age")
items | min
items | max
words | min
items | reverse | list
people | map(attribute="name") | list
people | map(attribute="at.city", default="-") | list
people | map(attribute="tags") | map("default", [], true) | map("length") | list
words | map("upper") | join(" ")
words | map("replace", "a", "4") | list
people | selectattr("role", "equalto", "user") | map(attribute="name") | list
people | selectattr("role", "==", "user") | list | length
people | rejectattr("role", "equalto", "user") | map(attribute="name") | list
people | selectattr("tags") | map(attribute="name") | list
people | selectattr("at", "defined") | list | length
people | selectattr("age", "gt", 26) | list | length
people | selectattr("role", "in", ["user", "system"]) | list | length
items | select("odd") | list
items | reject("odd") | list
[0, 1, "", "a"] | select | list
[1, "a", none] | select("string") | list
people | groupby("role") | map("first") | list
items | batch(3) | list
mapping | items | list
mapping | dictsort
{"b": 1, "A": 2} | dictsort
{"b": 1, "A": 2} | dictsort(true)
{"b": 1, "a": 2} | dictsort(by="value")
{"b": 1, "a": 2} | dictsort(reverse=true)
mapping | length
mapping | tojson
mapping | tojson(indent=2)
mapping | tojson(indent=4)
mapping | tojson(separators=(",", ":"))
mapping | tojson(sort_keys=true)
text | tojson
text | tojson(ensure_ascii=true)
quotes | tojson
html | tojson
[] | tojson(indent=2)
{} | tojson(indent=2)
[[], {}, [1, [2]]] | tojson(indent=2)
(1, 2) | tojson
{"a": (1, "x"), 2: none, true: 1.5} | tojson
1.0 | tojson
1e20 | tojson
none | tojson
missing | tojson
quotes
[quotes]
["it's"]
['say "x"']
["it's \"x\""]
["é\u200b\n"]
[text]
people
mapping
true
[true, none, 1.0]
html | escape
html | e
html | safe
html | string
"3" | int
"3.7" | int
"x" | int
"x" | int(5)
3.9 | int
" 12 " | int
"ff" | int(base=16)
"0x1f" | int(0, 16)
true | int
none | int
"2.5" | float
"x" | float
3 | float
"1e3" | float
number | string
-3 | abs
-3.5 | abs
2.567 | round(2)
2.5 | round
3.5 | round
2.4 | round(method="ceil")
7 | round
2.567 | round(1, "floor")
"a\nb\n\nc" | indent
"a\nb\n\nc" | indent(2)
"a\nb\n\nc" | indent(2, true)
"a\nb\n\nc" | indent(2, false, true)
"a\nb" | indent("> ")
"some words here" | wordcount
"%s is %d" | format("x", 3)
"a" is string
1 is string
1 is number
1.0 is number
true is number
true is integer
1 is integer
1.0 is float
true is boolean
true is true
1 is true
false is false
none is none
none is not none
nothing is none
mapping is mapping
items is mapping
items is sequence
"a" is sequence
mapping is sequence
items is iterable
"a" is iterable
1 is iterable
mapping is iterable
missing is iterable
missing is sequence
missing is mapping
missing is string
missing is none
missing is undefined
3 is odd
3 is even
6 is divisibleby 3
6 is divisibleby(4)
"AB" is upper
"ab" is lower
1 is equalto 1
1 is eq 1
1 is ne 2
1 is in [1, 2]
3 is in items
2 is gt 1
2 is lt 1
2 is sameas 2
range is callable
"upper" is filter
"odd" is test
not missing is defined
1 is number and 2 is number
("a" is string) if flag else "no"
range(5) | list
range(2, 8, 3) | list
range(5, 0, -2) | list
range(0) | list
dict(a=1, b=2)
dict({"x": 1}, y=2)
strftime_now("%d %b %Y")
strftime_now("%Y-%m-%d %H:%M:%S %A")
"a" "b"
"a\tb\x41\u00e9\101\q\\"
'it\'s'
"\N"
{"a": 1,}
[1, 2,]
(1)
1, 2
text.upper().lower().title()
(people | first).name
(people | map(attribute="name") | list)[0]
people[0].tags[-1]
people[0]["at"]["city"] | upper
people[0].at.city.upper()
people | length > 2
items | length - 1
not items | length == 4
items | length == 4 and flag
-number
+number
- number | abs
number if number else 0
"a" ~ "b" | upper
1 + 2 ~ 3
number ~ "x" * 2
mapping.a[1] is none
mapping.a[2]
flag and not missing
people | selectattr("name", "equalto", "bob") | first
(people | selectattr("name", "equalto", "zzz") | first) is defined
words | map("first") | join
words | join("|") | upper
"a" in "abc" and "z" not in "abc"
3 in [1, 2, 3] == true
text | attr("upper") is callable
"abc" | attr("nothing") is defined
namespace(a=1).a
items.count(1)
items.index(2)
(1, 2).index(2)
mapping.copy().b
1.5 == 1.5
"x" if 1 > 2 else none
"1" + 1
1 + "1"
missing + 1
missing.x
missing["x"]
missing.x.y
missing()
nothing.x.y
none + 1
items.append(1)
mapping.update({"x": 1})
1 / 0
1 // 0
1 % 0
1 < "a"
none < 1
"a" in 5
1 in "abc"
none | length
5 | list
5 | join
text | nofilter
text is notest
unknown(1)
"abc".nomethod()
raise_exception("stop")
"a".split("")
"%d" % "x"
"%s %s" % "x"
[1, "a"] | sort
1 2
(1
[1, 2
"open
a b
a.
a[
| upper
{"a" 1}
1 +
items[1:2:0]
{[1]: 2}
"abc"["x"] is defined
"abc".5 is defined
missing | tojson is defined
loop
loop is defined
"{}".format()
dict(1)
range(1000000)
range("a")
text.find()
"abc".join([1, 2])
mapping | dictsort(by="other")
"2" * "3"
[1] + (2,)
""".strip("\n").split("\n")
