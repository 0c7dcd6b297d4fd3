#!/usr/bin/env python3
"""Puts lines of text through nibble and through Python's `tokenizers`, and expects the same tokens of every one.

    tokenizer_lines.py NIBBLE [--lines 1000000] [--families qwen,llama3] [--seed 1]

The tokenizers are those of tests/text/tokenizers (families' published pre-tokenisers, normalizers and post-processors over small
vocabularies), those below, and the shipped model's. The lines are made from every script and plane of Unicode, from white space, digits,
contractions, control characters, emoji, code, added tokens, and from the rows of data/define; every hundredth stretch of them is a text of
many lines besides. Merges that are taken out have to be noticed. Ends with 1 where a line differs.
"""
import argparse
import json
import random

from interop import ROOT, Differs, expect, expect_red, finish, run, scratch
from tokenizers import Tokenizer

FIXTURES = ROOT / "tests/text/tokenizers"
STRETCH = 20000  # lines that are held at a time

# First and last character of stretches that have something of their own.
BLOCKS = [(0x20, 0x7E)] * 4 + [
    (0xA0, 0x17F), (0x180, 0x2AF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF),
    (0x700, 0x8FF), (0x900, 0x97F), (0x980, 0xDFF), (0xE00, 0xEFF), (0xF00, 0x109F), (0x10A0, 0x13FF), (0x1100, 0x11FF), (0x1400, 0x1AFF),
    (0x1B00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x20CF), (0x20D0, 0x20FF), (0x2100, 0x218F), (0x2190, 0x2BFF), (0x2C00, 0x2FFF),
    (0x3000, 0x303F), (0x3040, 0x30FF), (0x3100, 0x33FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xABFF), (0xAC00, 0xD7FF),
    (0xE000, 0xF8FF), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFEFF), (0xFF00, 0xFFFF), (0x10000, 0x107FF), (0x10800, 0x11FFF),
    (0x12000, 0x16FFF), (0x17000, 0x1CFFF), (0x1D000, 0x1DFFF), (0x1E000, 0x1EFFF), (0x1F000, 0x1FAFF), (0x20000, 0x2FA1F),
    (0x30000, 0x323AF), (0xE0000, 0xE01EF), (0xF0000, 0x10FFFF)]
SPACES = [" ", "  ", "   ", "\t", "\r", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u200a", "\u2028", "\u2029", "\u202f",
          "\u205f", "\u3000", "\u180e", "\u200b", "\ufeff"]
DIGITS = ["0", "7", "42", "365", "2024", "31415926", "1,234.50", "0x1F", "1e-9", "\u0661\u0662\u0663", "\u0967\u0968", "\u00bd", "\u2167", "\u00b2",
          "\uff11\uff12", "\U0001d7d8\U0001d7d9", "\u3007\u4e00", "\u0e51\u0e52"]
ENDINGS = ["s", "t", "re", "ve", "m", "ll", "d", "S", "T", "RE", "Ve", "LL", "D", "\u017f", "x"]
EMOJI = ["\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "1\ufe0f\u20e3",
         "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001fae0"]
CODE = ["if (a[i] != b) { return; }", "\tfor x in range(10):", "def f(self, *args) -> None:", "SELECT * FROM t WHERE id = 7;", "</div><br/>", "a/b\\c",
        "https://example.com/a?b=c&d=%20#frag", "x = y ** 2 // 3", "#include <vector>", "--flag=value", "foo_bar.baz", "/* ... */", "$HOME/.config"]
ADDED = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<s>", "</s>", "<unk>", "<mask>", "[INST]", "<|begin_of_text|>", "<|eot_id|>", "<0x41>",
         "<|im_en", "<start_of_turn>", "\u2581", "\u2581\u2581"]


class Lines:
    """The same lines for the same seed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.words = []
        with open(ROOT / "data/define/train.jsonl", encoding="utf-8") as rows:
            for row in rows:
                for message in json.loads(row)["messages"]:
                    self.words += message["content"].split()
        self.makers = [self.prose] * 4 + [self.of_a_block] * 4 + [self.spaces, self.digits, self.contraction, self.emoji, self.code, self.added,
                                                                 self.controls, self.accents, self.anything, self.mixed_case, self.repeated]

    def prose(self):
        at = self.rng.randrange(len(self.words))
        return " ".join(self.words[at:at + self.rng.randint(1, 8)])

    def of_a_block(self):
        first, last = self.rng.choice(BLOCKS)
        return "".join(chr(self.rng.randint(first, last)) for _ in range(self.rng.randint(1, 8)))

    def spaces(self):
        return "".join(self.rng.choices(SPACES, k=self.rng.randint(1, 4)))

    def digits(self):
        return "".join(self.rng.choices(DIGITS, k=self.rng.randint(1, 3)))

    def contraction(self):
        return self.rng.choice(self.words) + self.rng.choice("''''\u2019`") + self.rng.choice(ENDINGS)

    def emoji(self):
        return "".join(self.rng.choices(EMOJI, k=self.rng.randint(1, 3)))

    def code(self):
        return self.rng.choice(CODE)

    def added(self):
        return self.rng.choice(ADDED)

    def controls(self):
        return "".join(chr(self.rng.choice([self.rng.randrange(32), 0x7F, self.rng.randint(0x80, 0x9F)])) for _ in range(self.rng.randint(1, 3)))

    def accents(self):
        return "".join(self.rng.choice("aeiouANOcsZ\u03b1\u0438\u304b") + "".join(chr(self.rng.randint(0x300, 0x345)) for _ in range(self.rng.randint(0, 3)))
                       for _ in range(self.rng.randint(1, 5)))

    def anything(self):
        chars = (self.rng.randrange(0x110000) for _ in range(self.rng.randint(1, 4)))
        return "".join(chr(c) for c in chars if not 0xD800 <= c < 0xE000)

    def mixed_case(self):
        return "".join(self.rng.choice([str.upper, str.lower, str.title])(self.rng.choice(self.words)) for _ in range(self.rng.randint(1, 3)))

    def repeated(self):
        return self.rng.choice("ax =-_.!\u4e2d\u00e9 ") * self.rng.randint(1, 40)

    def line(self):
        parts = []
        for _ in range(self.rng.randint(1, 6)):
            parts.append(self.rng.choice(self.makers)())
            if self.rng.random() < 0.5:
                parts.append(" ")
        text = "".join(c for c in "".join(parts) if not 0xD800 <= ord(c) < 0xE000)
        return text.replace("\n", " ")

    def stretch(self, count):
        return [self.line() for _ in range(count)]


def changed(state, change):
    state = json.loads(json.dumps(state))
    change(state)
    return state


def families():
    """The whole tokenizer.json of each by name."""
    states = {path.stem: json.loads(path.read_text())["tokenizer"] for path in sorted(FIXTURES.glob("*.json")) if "cases" not in path.stem}
    states["tiny-qwen3"] = json.loads((ROOT / "models/tiny-qwen3/tokenizer.json").read_text())

    def no_prefix(state):  # as GPT-2's own has it
        state["pre_tokenizer"]["add_prefix_space"] = False

    def new_metaspace(state):  # Llama 2 as it was converted again, Mistral 7B v0.3
        state["normalizer"] = None
        state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}

    def deepseek_llm(state):  # before version 2: letters by their ranges, CJK, digits one by one
        split = lambda pattern: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            split("[\r\n]"), split("\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u0370-\u0373\u0386\u0400-\u0481\u1e00-\u1eff]+"),
            split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"), split("\\s+$"), split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}

    states["gpt2-plain"] = changed(states["gpt2"], no_prefix)
    states["llama2-first"] = changed(states["llama2"], new_metaspace)
    states["deepseek-llm"] = changed(states["deepseek"], deepseek_llm)
    return states


def ours(nibble, folder, text, *options):
    path = folder / "lines.txt"
    path.write_bytes(text.encode())
    return [json.loads(line) for line in run(nibble, "tokenize", "--model", folder, "--text-file", path, *options).splitlines()]


def compare(nibble, folder, tokenizer, lines, where):
    found = ours(nibble, folder, "".join(line + "\n" for line in lines))
    expect(len(found) == len(lines), f"{where}: {len(lines)} lines gave {len(found)}")
    for line, ids, encoding in zip(lines, found, tokenizer.encode_batch_fast(lines), strict=True):
        if ids != encoding.ids:
            raise Differs(f"{where}: {line!r} is {ids}, not {encoding.ids}")


def compare_whole(nibble, folder, tokenizer, lines, where):
    text = "\n".join(lines)
    found, expected = ours(nibble, folder, text, "--whole")[0], tokenizer.encode(text).ids
    if found != expected:
        at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
        raise Differs(f"{where}: a text of {len(lines)} lines differs at token {at}, after {tokenizer.decode(expected[max(0, at - 12):at])!r}")


def without_merges(state):
    del state["model"]["merges"][::2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble")
    parser.add_argument("--lines", type=int, default=1000000)
    parser.add_argument("--families", default="")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    states = families()
    names = options.families.split(",") if options.families else list(states)
    with scratch() as folder:
        tokenizers, lines = {}, Lines(options.seed)
        for name in names:
            (folder / name).mkdir()
            (folder / name / "tokenizer.json").write_text(json.dumps(states[name]))
            tokenizers[name] = Tokenizer.from_str(json.dumps(states[name]))
        for first in range(0, options.lines, STRETCH):
            stretch = lines.stretch(min(STRETCH, options.lines - first))
            for name in names:
                compare(options.nibble, folder / name, tokenizers[name], stretch, f"{name}, lines from {first}")
                compare_whole(options.nibble, folder / name, tokenizers[name], stretch[::100], f"{name}, lines from {first}")
        for name in names:
            spoiled = Tokenizer.from_str(json.dumps(changed(states[name], without_merges)))
            expect_red(name, lambda: compare(options.nibble, folder / name, spoiled, lines.stretch(STRETCH), name))
    print(f"{options.lines} lines have the same tokens in each of {', '.join(names)}.")


if __name__ == "__main__":
    finish(main)
