"""Writes jinja_cases.json: what Python's jinja2 3.1, set up as transformers sets it up, makes of each template.

Run it in this folder after a change of a case: python3 make_jinja_cases.py
"""

import json
import pathlib
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jinja_expressions import EXPRESSIONS
from jinja_statements import STATEMENTS

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


if __name__ == "__main__":
    main()
