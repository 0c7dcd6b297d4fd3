#!/usr/bin/env python3
"""Renders chats by nibble and by Python's jinja2, set up as transformers sets it up, and expects the same texts.

    chat_templates.py NIBBLE [--chats 400] [--seed 1]

The templates are those of tests/text/templates and of the shipped model; the chats are made at random: of all roles, with and without tools,
calls, thoughts, lists of parts, white space at their ends and characters of all kinds. What a template refuses has to be refused by both. A
template that is changed by one character has to be noticed. Ends with 1 where a text differs.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys

import jinja2
from interop import ROOT, Differs, expect, expect_red, finish, run, scratch

sys.path.append(str(ROOT / "tests/text"))
from make_jinja_cases import environment

NAMES = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
TEXTS = ["", "Hi", " spaces ", "two\nlines\n", "\n", "<think>\nno\n</think>\n\nyes", "a </think> b", "quotes \"'\\", "{{ braces }} {% if %}", "\u00e9\u4f60\U0001f600",
         "<|im_end|>", "x" * 50, "1 < 2 & 3 > 2", "\t tab", "\u2028\u00a0"]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The \"weather\" \u00e9\u4f60 <b>", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["a", "b"]}, "days": {"type": "integer", "default": 3}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "none", "parameters": {}}}]
ARGUMENTS = [{}, {"city": "Rome", "days": 2}, {"x": [1, 2.5, None, True], "y": {"z": "\u00fc"}}, {"big": 9007199254740993, "small": 1e-7}]


class Chats:
    def __init__(self, seed):
        self.rng = random.Random(seed)

    def text(self):
        return "".join(self.rng.choices(TEXTS, k=self.rng.choice([1, 1, 1, 2])))

    def message(self, role):
        message = {"role": role, "content": self.text()}
        if role == "assistant":
            if self.rng.random() < 0.3:
                message["reasoning_content"] = self.text()
            if self.rng.random() < 0.3:
                message["tool_calls"] = [{"type": "function", "function": {"name": "weather", "arguments": self.rng.choice(ARGUMENTS)}}
                                         for _ in range(self.rng.randint(1, 2))]
                if self.rng.random() < 0.3:
                    message["content"] = self.rng.choice([None, ""])
        return message

    def chat(self):
        messages = [self.message("system")] if self.rng.random() < 0.4 else []
        for _ in range(self.rng.randint(1, 4)):
            messages.append(self.message("user"))
            if self.rng.random() < 0.85:
                messages.append(self.message("assistant"))
            if "tool_calls" in messages[-1]:
                messages += [self.message("tool") for _ in range(self.rng.randint(1, 2))]
        chat = {"messages": messages}
        if self.rng.random() < 0.3:
            chat["tools"] = self.rng.sample(TOOLS, self.rng.randint(1, 2))
        if self.rng.random() < 0.3:
            chat["enable_thinking"] = self.rng.random() < 0.5
        return chat


def in_jinja(template, chat, prompt):
    variables = {"tools": None, **NAMES, **chat, "add_generation_prompt": prompt}
    try:
        return template.render(**variables).replace("\ue000", "").replace("\ue001", "")
    except Exception:  # whatever a template raises, transformers' user gets no text
        return None


def in_nibble(nibble, folder, chats, prompt):
    lines = folder / "chats.jsonl"
    lines.write_text("".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats))
    out = run(nibble, "tokenize", "--model", folder, "--chat", "--json", "--text-file", lines, *(["--generation-prompt"] if prompt else []))
    return [json.loads(line) for line in out.splitlines()]


def refuses(nibble, folder, chat, prompt):
    command = [nibble, "tokenize", "--model", folder, "--chat", "--json", "--text", json.dumps(chat), *(["--generation-prompt"] if prompt else [])]
    return subprocess.run(list(map(str, command)), capture_output=True).returncode == 1


def compare(nibble, folder, name, source, chats):
    template = environment().from_string(source)
    refused = 0
    for prompt in (False, True):
        texts = [in_jinja(template, chat, prompt) for chat in chats]
        whole = [(chat, text) for chat, text in zip(chats, texts) if text is not None]
        for (chat, text), found in zip(whole, in_nibble(nibble, folder, [chat for chat, _ in whole], prompt), strict=True):
            expect(found == text, f"{name}: {chat} is {found!r}, not {text!r}")
        for chat in [chat for chat, text in zip(chats, texts) if text is None][:20]:
            expect(refuses(nibble, folder, chat, prompt), f"{name}: {chat} is refused by jinja2 alone")
            refused += 1
    return refused


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble")
    parser.add_argument("--chats", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tiny = ROOT / "models/tiny-qwen3"
    sources = {path.stem: path.read_text() for path in sorted((ROOT / "tests/text/templates").glob("*.jinja")) if "strftime_now" not in path.read_text()}
    sources["tiny-qwen3"] = (tiny / "chat_template.jinja").read_text()
    chats = Chats(options.seed)
    made = [chats.chat() for _ in range(options.chats)]
    with scratch() as folder:
        for name, source in sources.items():
            (folder / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
            (folder / "tokenizer_config.json").write_text(json.dumps(NAMES))
            (folder / "chat_template.jinja").write_text(source)
            refused = compare(options.nibble, folder, name, source, made)
            print(f"{name}: {options.chats} chats, {refused} of them refused by both", flush=True)
            at = source.index("role")
            expect_red(name, lambda: compare(options.nibble, folder, name, source[:at] + "rule" + source[at + 4:], made))


if __name__ == "__main__":
    finish(main)
