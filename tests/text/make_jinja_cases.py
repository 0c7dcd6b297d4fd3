"""Writes jinja_cases.json: what Python's jinja2 3.1, set up as transformers sets it up, makes of each template.

Run it in this folder after a change of a case: python3 make_jinja_cases.py
"""

import json
import pathlib
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent


class Generation(jinja2.ext.Extension):
    """Marks what {% generation %} prints with two characters that no case uses."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller):
        return "\ue000" + caller() + "\ue001"


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime(2025, 3, 9, 14, 5, 6).strftime(form)
    return env


def run(env, name, template, variables):
    case = {"name": name, "template": template, "variables": variables}
    try:
        text = env.from_string(template).render(**variables)
    except Exception as error:  # every failure is one outcome: an error
        case["error"] = type(error).__name__
        return case
    spans = []
    while "\ue000" in text:
        begin = text.index("\ue000")
        end = text.index("\ue001")
        spans.append([len(text[:begin].encode()), len(text[:begin].encode()) + len(text[begin + 1 : end].encode())])
        text = text[:begin] + text[begin + 1 : end] + text[end + 1 :]
    case["expected"] = text
    if spans:
        case["generated"] = spans
    return case


VARIABLES = {
    "text": "Grüße, wörld! 你好 👋🏽",
    "spaced": "  \t two words \n",
    "empty": "",
    "number": 7,
    "negative": -7,
    "real": 2.5,
    "flag": True,
    "nothing": None,
    "items": [3, 1, 2, 1],
    "words": ["beta", "Alpha", "gamma", "alpha"],
    "mapping": {"b": 2, "a": [1, None, True], "items": "own", "c": {"d": 1.0}},
    "people": [
        {"name": "Ann", "age": 30, "role": "user", "tags": ["x", "y"], "at": {"city": "Oslo"}},
        {"name": "bob", "age": 25, "role": "assistant", "tags": [], "at": {"city": "Rome"}},
        {"name": "Cid", "role": "user", "age": 25},
    ],
    "quotes": "it's \"both\" \\ \n\t\x07\x7f é",
    "html": "<a href='x'>&</a>",
}

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

STATEMENTS = [
    "{% for x in items %}{{ loop.index }}/{{ loop.length }}:{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for x in items %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }} {% endfor %}",
    "{% for x in items %}[{{ loop.previtem }}|{{ loop.nextitem }}|{{ loop.previtem is defined }}]{% endfor %}",
    "{% for x in items %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}",
    "{% for k, v in mapping.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, (a, b) in [('x', (1, 2)), ('y', [3, 4])] %}{{ k }}{{ a }}{{ b }} {% endfor %}",
    "{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}",
    "{% for x in missing %}x{% else %}none{% endfor %}",
    "{% for x in nothing %}x{% endfor %}",
    "{% for x in items if x > 1 %}{{ loop.index }}{{ x }}{{ loop.length }}{% else %}none{% endfor %}",
    "{% for x in items if x > 10 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in items %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in items %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in items %}{% for y in items %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }}{{ loop.index }} {% endfor %}{{ loop.index }};{% endfor %}",
    "{% set ns = namespace(on=true) %}{% for x in items if ns.on %}{{ x }}{% set ns.on = false %}{% endfor %}",
    "{% set ns = namespace(on=true) %}{% for x in items if ns.on %}{{ x }}{{ loop.last }}{% set ns.on = false %}{% endfor %}",
    "{% set ns = namespace(on=true) %}{% for x in items if ns.on %}{{ x }}{{ loop.length }}{% set ns.on = false %}{% endfor %}",
    "{% for c in 'aé' %}<{{ c }}>{% endfor %}",
    "{% for k in mapping %}{{ k }}{% endfor %}",
    "{% for x in range(3) %}{{ x }}{% endfor %}{{ x }}",
    "{% for x in people recursive %}{{ x.name }}{% if x.kids %}({{ loop(x.kids) }}){% endif %}{% endfor %}",
    "{% for x in [{'n': 1, 'k': [{'n': 2, 'k': [{'n': 3}]}]}] recursive %}{{ loop.depth }}{{ x.n }}{% if x.k %}({{ loop(x.k) }}){% endif %}{% endfor %}",
    "{% set x = 0 %}{% for y in items %}{% set x = x + y %}{{ x }} {% endfor %}{{ x }}",
    "{% set ns = namespace(x=0, list=[]) %}{% for y in items %}{% set ns.x = ns.x + y %}{% set ns.list = ns.list + [y * 2] %}{% endfor %}{{ ns.x }} {{ ns.list }}{{ ns.nope is defined }}",
    "{% set ns = namespace() %}{% set ns.a = 'x' %}{{ ns.a }}{{ ns['a'] }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}",
    "{% set mapping.x = 1 %}",
    "{% set t = 1, 2 %}{{ t }}",
    "{% set x %}block {{ number }}{% endset %}[{{ x }}]{{ x | length }}",
    "{% set x | upper | trim %} block {% endset %}[{{ x }}]",
    "{% set x %}{% set y = 5 %}{% endset %}{{ y is defined }}",
    "{% if flag %}{% set z = 1 %}{% endif %}{{ z }}",
    "{% if missing %}a{% elif number == 7 %}b{% elif flag %}c{% else %}d{% endif %}",
    "{% if not flag %}a{% else %}d{% endif %}",
    "{% if items and people[0].name == 'Ann' %}yes{% endif %}",
    "{% macro m(a, b=2, c='x') %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(1, c='y') }} {{ m(c=1, a=2) }} {{ m() }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m(a, b=1, c) %}{% endmacro %}",
    "{% macro m() %}{{ number }}{{ outer }}{% endmacro %}{% set outer = 'o' %}{{ m() }}",
    "{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(5) }}",
    "{% macro m(x) %}[{{ caller() }}{{ x }}]{% endmacro %}{% call m(1) %}body {{ number }}{% endcall %}",
    "{% macro m(x) %}{% for i in x %}{{ caller(i, loop.index) }}{% endfor %}{% endmacro %}{% call(a, b) m(items) %}<{{ a }}{{ b }}>{% endcall %}",
    "{% macro m(t) %}{% set q = t | trim %}{{ q }}!{% endmacro %}{{ m(spaced) | upper }}{{ q is defined }}",
    "{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}o{% endmacro %}{{ outer() }}",
    "{% for x in items %}{{ m(x) }}{% endfor %}{% macro m(x) %}{{ x }}{% endmacro %}",
    "{% filter upper %}abc {{ text }}{% endfilter %}",
    "{% filter replace('a', 'b') | upper %}abca{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% with %}{% set a = 3 %}{{ a }}{% endwith %}",
    "{% raw %}{{ not }} {% this %}{% endraw %}x",
    "a\n  {% raw %}  {{ x }}\n  {% endraw %}\nb",
    "a\n  {%- raw -%}  {{ x }}\n  {%- endraw -%}\nb",
    "{# comment #}x{# another\nover lines #}\ny",
    "a  {#- c -#}  b",
    "a\n  {# c #}\nb\n  {#+ c +#}\nc",
    "  {% if flag %}\n  yes\n  {% endif %}\nend\n",
    "  {%- if flag -%}\n  yes\n  {%- endif -%}\nend\n",
    "  {%+ if flag %}\n  yes\n  {%+ endif +%}\nend\n",
    "{% if flag +%}\nyes\n{% endif +%}\nend\n\n",
    "x {% if flag %} y {% endif %} z",
    "\t{% if flag %}\n\ty{% endif %}\n",
    "{{ number }}\n{{ number -}}\n  {{- number }}\n  {{ number }}\n",
    "a\n\n   {{- number }}  \n b",
    "a \n {%- if flag %} b {%- endif %} c",
    "{% if flag %}{% endif %}\n\nx",
    "{% if flag %}\r\nx\r\n{% endif %}\r\ny\rz",
    "line\n",
    "line\n\n",
    "",
    "\n",
    "{{ {'a': {'b': 1}} }}",
    "{{ {'a': {'b': 1}}['a'] }}}}",
    "{ {% if flag %}}{% endif %}",
    "{{ '}}' }}{{ '%}' }}{{ \"{{\" }}",
    "{{-  number  -}}",
    "{{+ number }}",
    "{{ number\n   | string\n }}",
    "{%if flag%}x{%endif%}",
    "{% generation %}abc{% endgeneration %}",
    "é{% for x in items %}u{{ x }}{% generation %}a{{ x }}é{% endgeneration %}\n{% endfor %}",
    "{%- generation -%} a {%- endgeneration -%} b",
    "{% generation %}{% set g = 1 %}{% endgeneration %}{{ g is defined }}",
    "{% for x in items %}{% generation %}{{ loop.index }}{{ x }}{% endgeneration %}{% endfor %}",
    "{% if flag %}x",
    "{% for x in items %}x",
    "{% endif %}",
    "{% nonsense %}",
    "{% if %}x{% endif %}",
    "{% set %}",
    "{% break %}",
    "{% for x items %}{% endfor %}",
    "{{ number",
    "{% raw %}x",
    "{# open",
    "{{ number }",
    "{% if flag }x{% endif %}",
    "{% for loop in items %}{% endfor %}",
    "{% set none = 1 %}",
    "{{ a = 1 }}",
    "{% for x in items %}{{ x }}{% else %}e{% endfor %}{% for x in items if false %}{% else %}{{ loop is defined }}{% endfor %}",
    "{% set messages = people %}{% for m in messages[1:] %}{{ m.name }}{% if loop.nextitem is defined and loop.nextitem.role == 'user' %}>{% endif %}{% endfor %}",
    "{% for m in people %}{% if loop.previtem and loop.previtem.role == m.role %}same{% else %}new{% endif %}{% endfor %}",
    "{% for a in people | selectattr('tags') %}{{ a.name }}{% endfor %}",
    "{% for key in people[0] | list | sort if key != 'tags' %}{{ key }} {% endfor %}",
    "{%- macro show(v) -%}{%- if v is mapping -%}{{ '{' }}{%- for k, w in v | dictsort -%}{{ k }}:{{ show(w) }}{%- if not loop.last %},{% endif -%}{%- endfor -%}{{ '}' }}{%- elif v is string -%}<{{ v }}>{%- elif v is sequence -%}[{% for w in v %}{{ show(w) }}{{ ',' if not loop.last }}{% endfor %}]{%- else -%}{{ v }}{%- endif -%}{%- endmacro -%}{{ show(mapping) }}{{ show(people) }}",
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Today's weather <now> & later",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Ort, z. B. Köln"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
CHATS = {
    "one": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
    "system": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n2"},
        {"role": "user", "content": "And 2+2? 🤔"},
        {"role": "assistant", "content": "<think>\nStill easy.\n</think>\n\n4 "},
    ],
    "reasoning": [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1", "reasoning_content": "r1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2", "reasoning_content": "r2"},
    ],
    "open": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "Bye"}],
    "calls": [
        {"role": "user", "content": "Weather in Köln?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "{\"sky\": \"blue\"}"},
        {"role": "assistant", "content": "Blue sky."},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is it? "}]},
        {"role": "assistant", "content": "A cat."},
    ],
    "wrong": [{"role": "assistant", "content": "first"}, {"role": "critic", "content": "what"}],
    "no_content": [{"role": "user"}, {"role": "assistant", "content": None}],
}


def family_cases(env):
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text()
        for chat, messages in CHATS.items():
            for prompt in (False, True):
                for tools in (None, TOOLS):
                    if prompt and tools and chat != "open":
                        continue
                    variables = {
                        "messages": messages,
                        "add_generation_prompt": prompt,
                        "bos_token": "<s>",
                        "eos_token": "</s>",
                        "tools": tools,
                    }
                    if prompt:
                        variables["enable_thinking"] = False
                    yield run(env, f"{path.name} {chat} {prompt} {tools is not None}", template, variables)


def main():
    env = environment()
    cases = [run(env, text, "{{ " + text + " }}", VARIABLES) for text in EXPRESSIONS]
    cases += [run(env, text, text, VARIABLES) for text in STATEMENTS]
    for case in cases:
        del case["variables"]
    families = list(family_cases(env))
    for case in families:
        case["template"] = case["name"].split()[0]
    with open(HERE / "jinja_cases.json", "w") as out:
        json.dump({"variables": VARIABLES, "cases": cases, "families": families}, out, ensure_ascii=False, indent=0)
        out.write("\n")
    errors = sum("error" in case for case in cases + families)
    print(f"{len(cases)} cases, {len(families)} of families, {errors} of them errors")


main()
