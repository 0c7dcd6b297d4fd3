#!/usr/bin/env python3
"""Makes tests/text/tokenizers/: small tokenizers in the manner of public families, and what Python's `tokenizers` does
with a hard corpus. Run from the repository's root; needs `tokenizers` (0.23.3 made what is committed)."""

import json
import pathlib
import sys
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path("tests/text/tokenizers")
SIZE = 700

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def training_text():
    lines = []
    with open("data/define/train.jsonl", encoding="utf-8") as rows:
        for row, _ in zip(rows, range(1500)):
            lines += [message["content"] for message in json.loads(row)["messages"]]
    lines += ["Größe, naïve café, Über, señor, 100 000 €, x = 3.14159; if (a[i] != b) { return; }\n\n\t\tfor i in range(10):"] * 40
    lines += ["你好，世界。今天天气很好。", "こんにちは世界", "안녕하세요 세계", "Привет, мир! Как дела?", "مرحبا بالعالم", "हिन्दी में"] * 40
    return lines


def special(*names, **flags):
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def train(tokenizer, alphabet, specials=()):
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, special_tokens=list(specials),
                                  show_progress=False, limit_alphabet=400)
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(pre_tokenizer, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def qwen():
    """NFC, Split, ByteLevel; added tokens that are not special."""
    steps = pre_tokenizers.Sequence([split(QWEN), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False,
                                                                         trim_offsets=False)])
    tokenizer = byte_level(steps)
    tokenizer.normalizer = normalizers.NFC()
    train(tokenizer, BYTES)
    tokenizer.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>", "<tool_call>")])
    return tokenizer


def llama3():
    """Numbers in threes, ignore_merges, a template that adds bos."""
    steps = pre_tokenizers.Sequence([split(LLAMA3), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = train(byte_level(steps), BYTES)
    state = json.loads(tokenizer.to_str())
    # Words without the merges that make them: only ignore_merges finds them.
    state["model"]["ignore_merges"] = True
    dropped = {"Define", "\u0120noun", "\u0120definition", "\u0120something", "ing"}
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "".join(pair) not in dropped]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(special("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>"))
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B",
                                      special_tokens=[("<|begin_of_text|>", bos)])])
    return tokenizer


def gpt2():
    """GPT-2's own pattern, a space put in front, a frame of two tokens."""
    tokenizer = train(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), BYTES, ["<s>", "</s>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    tokenizer.add_special_tokens(special("<mask>", lstrip=True) + special("<|im_end|>", rstrip=True))
    tokenizer.add_tokens([AddedToken("word", single_word=True), AddedToken("   ", normalized=False), AddedToken("    ")])
    return tokenizer


def smollm():
    """Single digits, then GPT-2's pattern."""
    return train(byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False)])),
                 BYTES, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def falcon():
    """The byte level in the middle of the steps."""
    steps = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(behavior="contiguous"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False),
                                     pre_tokenizers.Digits(individual_digits=False), split("[0-9][0-9][0-9]")])
    return train(byte_level(steps), BYTES, ["<|endoftext|>", "<|im_end|>"])


def deepseek():
    """Several Splits in a row, one of them by CJK ranges."""
    steps = pre_tokenizers.Sequence([
        split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"),
        split(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return train(byte_level(steps), BYTES, ["<|begin_of_sentence|>", "<|im_end|>"])


def tekken():
    """Mistral's later pattern, which splits at a change of case."""
    steps = pre_tokenizers.Sequence([split(TEKKEN), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return train(byte_level(steps), BYTES, ["<unk>", "<s>", "</s>", "[INST]", "<|im_end|>"])


def sentencepiece(**model):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True, **model))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    return tokenizer


def llama2():
    """No pre-tokenizer: a whole text is one word. Spaces are marked by the normalizer."""
    tokenizer = sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    train(tokenizer, [], ["<unk>", "<s>", "</s>"] + BYTE_TOKENS)
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = None
    # Older files write a merge as one string.
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
    tokens = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    state["added_tokens"] = tokens
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B",
                                                             special_tokens=[("<s>", 1)])
    return tokenizer, state["model"]["merges"]


def mistral():
    """Metaspace at the start of the text alone, not split."""
    state = json.loads(llama2()[0].to_str())
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(special("[INST]", "[/INST]", "<|im_end|>"))
    return tokenizer


def gemma():
    """Spaces replaced, split after each, runs of blanks and newlines as added tokens, no frame, no Strip."""
    state = json.loads(llama2()[0].to_str())
    state["post_processor"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(2, 5)])
    tokenizer.add_tokens([AddedToken("▁" * n, normalized=False) for n in range(2, 5)])
    tokenizer.add_special_tokens(special("<start_of_turn>", "<end_of_turn>", "<|im_end|>"))
    return tokenizer


def metaspace():
    """Metaspace before every word, an unknown token, no byte fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase()])
    train(tokenizer, [], ["<unk>"])
    tokenizer.add_tokens([AddedToken("Definition"), AddedToken("ＦＵＬＬ")])
    return tokenizer


def words():
    """Whitespace, accents stripped, a regex replaced, no decoder."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.CharDelimiterSplit("x")])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(),
                                                 normalizers.Replace(Regex(r"\s{2,}"), "  ")])
    train(tokenizer, [], ["<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), split(r"\p{Lu}", "merged_with_next"), split("ment", "merged_with_previous"),
        split(r"[aeiu]", "contiguous"), split("[^-]+", "removed", invert=True)])
    return tokenizer


def corpus():
    texts = [
        "", " ", "a", "\n", "  \n\n ", "Define the noun \"abacus\".", "Hello, world! It's 2024; we'LL see, I'D say.",
        "Don't you're they've I'm he'll she'd DON'T 'ſ 'S", "x" * 300, "ab" * 400, " " * 70 + "x" + " " * 5,
        "\t\t  tabs\tand  spaces \n\n\n  \r\n\r\n end  ", "1234567 3.14159 ١٢٣ ½ Ⅻ ²", "foo_bar.baz(qux[0]) != {1: 'x'};\n\treturn",
        "Größe naïve café Übermut señor", "e\u0301 e\u0301\u0323 a\u0323\u0301 q\u0307\u0323 A\u030a \u212b \u1e9b\u0323",
        "你好，世界。今天天气很好。漢字かな交じり文", "안녕하세요 세계 \u1112\u1161\u11ab\u1100\u1173\u11af", "Привет, мир! مرحبا بالعالم हिन्दी में ไทย",
        "👍🏽 👨\u200d👩\u200d👧\u200d👦 🇩🇪 🫠 ❤\ufe0f", "\u0000\u0001\u0007\u001b[0m\u007f\u0085\u00ad\u200b\u200e\ufeff",
        "nbsp\u00a0em\u2003ideo\u3000ogham\u1680mvs\u180e nnbsp\u202f line\u2028para\u2029vt\u000bff\u000c",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "a <|im_end|>  b<|im_end|>c <|im_en d|> <|im_end",
        "<s>[INST] hi [/INST] there</s><unk> <0x41><0xE4>", "words word sword word. password word", " <mask> x  <mask>\n<mask>",
        "▁▁▁ meta▁space ▁", "ﬁ ＦＵＬＬ ｗｉｄｔｈ ㎏ ｶﾞ Definition DEFINITION", "İstanbul ΑΣ ǅ ß ẞ", "\ufffd \ufffd\ufffd",
        "something definition Define noun nouns doing", "a\u0300\u0301\u0302\u0303" * 5, "\u0301start", "\U000e0001\U0010ffff\ue000",
        "CamelCaseHTTPServer iPhone McDonald's ÉCOLE École", "------====____....!!!???", "https://example.com/a?b=c&d=%20#frag",
        "end-of-line-hyphen-\n-next", "\r", "\r\n", "a\rb", "   x", "x   ", "𝒳𝓎 𐍈 𠜎𠜱", "ก็ กำ \u0e33", "\u0d46\u0d3e \u09c7\u09be \u1100\u1161",
    ]
    cases = [text.encode("utf-8") for text in texts]
    cases += [b"\xff", b"ok \xc3\x28 \xe4\xbd", b"\xf0\x9f\x98", b"a\x80\x80b\xed\xa0\x80c\xc0\xaf\xf4\x90\x80\x80 \xf0\x9f\x98\x80"]
    return cases


def expected(tokenizer, case, offsets):
    text = case.decode("utf-8", "replace")
    tokenizer.encode_special_tokens = False
    encoding = tokenizer.encode(text)
    tokenizer.encode_special_tokens = True
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    out = {"hex": case.hex(), "ids": encoding.ids, "text": tokenizer.decode(encoding.ids, skip_special_tokens=False),
           "text_without_special": tokenizer.decode(encoding.ids, skip_special_tokens=True)}
    bare = tokenizer.encode(text, add_special_tokens=False).ids
    if plain != bare:
        out["plain_ids"] = plain
    # Where NFC composes characters `tokenizers` gives the place of the first alone, nibble that of all.
    if offsets and text.encode("utf-8") == case and unicodedata.is_normalized("NFC", text):
        to_byte = [0]
        for char in text:
            to_byte.append(to_byte[-1] + len(char.encode("utf-8")))
        out["offsets"] = [[to_byte[begin], to_byte[end]] for begin, end in encoding.offsets]
    return out


def write(name, tokenizer, offsets=False, merges=None):
    state = json.loads(tokenizer.to_str())
    if merges:
        state["model"]["merges"] = merges
    tokenizer = Tokenizer.from_str(json.dumps(state))
    cases = [expected(tokenizer, case, offsets) for case in corpus()]
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    path = OUT / f"{name}.json"
    body = json.dumps(state, ensure_ascii=True, separators=(",", ":"))
    path.write_text(f'{{"tokenizer":{body},\n"cases":[\n{lines}\n]}}\n', encoding="ascii")
    return path.stat().st_size


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    total = 0
    for make in (qwen, llama3, gpt2, smollm, falcon, deepseek, tekken, mistral, gemma, metaspace, words):
        total += write(make.__name__, make(), offsets=make in (qwen,))
    tokenizer, merges = llama2()
    total += write("llama2", tokenizer, merges=merges)
    # The shipped model's own tokenizer is read from its folder.
    shipped = Tokenizer.from_file("models/tiny-qwen3/tokenizer.json")
    cases = [expected(shipped, case, False) for case in corpus()]
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    (OUT / "tiny-qwen3.cases.json").write_text(f'{{"cases":[\n{lines}\n]}}\n', encoding="ascii")
    print(f"{total + (OUT / 'tiny-qwen3.cases.json').stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
