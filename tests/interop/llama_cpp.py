#!/usr/bin/env python3
"""Holds GGUF files of `nibble merge` and `nibble export --for llama.cpp` against llama.cpp itself, of a model and of a mixture of experts.

    llama_cpp.py NIBBLE MODEL ADAPTER --node FOLDER

Compared are the tokens of a text and the most likely next tokens of the model, of the model with the adapter, and of the merged
model, with what transformers computes of the folders. FOLDER is one in which `npm install --ignore-scripts node-llama-cpp` was run.
Needs node, torch, transformers and tokenizers, so it is no part of ./check. Ends with 1 where tokens differ or a probability by more than
1% of itself: llama.cpp keeps keys and values in 16 bits. The adapter at half its scale has to lie further away.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import torch
from mixture import write_mixture
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

TEXT = "<|im_start|>user\nHello, it's 1234 o'clock! \u00e9\u20ac<|im_end|>\n"
LARGEST = math.log(1.01)


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{words[0]} {words[1]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def in_llama_cpp(folder, model, adapter="-", scale=1):
    script = pathlib.Path(__file__).with_name("llama_cpp.mjs")
    return json.loads(run("node", script, folder, model, adapter, scale, TEXT).splitlines()[-1])


def in_transformers(folder):
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return tokens, torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1].double(), 0)


def distance(found, expected):
    """The largest difference of logarithms among what llama.cpp finds most likely."""
    tokens, logs = expected
    if found["tokens"] != tokens:
        return math.inf
    return max(abs(math.log(p) - logs[int(token)].item()) for token, p in found["next"])


def check(nibble, node, model, adapter, scratch):
    """Whether llama.cpp agrees about model and adapter."""
    base, lora, merged = scratch / "base.gguf", scratch / "lora.gguf", scratch / "merged.gguf"
    given, with_adapter = ["--model", model], ["--adapter", adapter]
    run(nibble, "merge", *given, "--output", base, "--format", "gguf", "--dtype", "f32")
    run(nibble, "merge", *given, *with_adapter, "--output", merged, "--format", "gguf", "--dtype", "f32")
    run(nibble, "export", "--for", "llama.cpp", *given, *with_adapter, "--output", lora)
    run(nibble, "merge", *given, *with_adapter, "--output", scratch / "folder", "--dtype", "f32")
    plain, adapted = in_transformers(model), in_transformers(scratch / "folder")
    found = {"model": distance(in_llama_cpp(node, base), plain),
             "model with adapter": distance(in_llama_cpp(node, base, lora), adapted),
             "merged model": distance(in_llama_cpp(node, merged), adapted)}
    half = distance(in_llama_cpp(node, base, lora, 0.5), adapted)
    for what, far in found.items():
        print(f"{what}: {far:.5f}")
    print(f"adapter at half its scale: {half:.5f}, which has to be above {LARGEST:.5f}")
    return all(far <= LARGEST for far in found.values()) and half > LARGEST


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("adapter", type=pathlib.Path)
    parser.add_argument("--node", type=pathlib.Path, required=True)
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="nibble-llama-") as name:
        scratch = pathlib.Path(name)
        for what, model, adapter in (("given", options.model, options.adapter), ("mixture of experts", *write_mixture(scratch))):
            print(f"{what}:")
            (scratch / what).mkdir()
            good = check(options.nibble, options.node, model, adapter, scratch / what) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
