#!/usr/bin/env python3
"""Measures generation of one text, or of several at once, with nibble and with transformers on one idle GPU, and prints a table.

    generate.py MODEL [WAY ...] [--batch 1] [--prompt-length 512] [--new-tokens 128] [--lora-rank 0] [--json OUT.json]

MODEL is the folder that `peer.py model` makes. WAY: nibble (NF4, `nibble bench generate`; NIBBLE=build/nibble), bf16, compiled (bf16 with
a static cache, which transformers compiles) and bnb (bitsandbytes' NF4 with double quantisation); all but what is missing without any.
Random ids, greedy, and as many tokens as asked for; prompts of a batch have one length. The time of a step, a token of each text, is the
difference between texts with and without all new tokens but the first, by their number; the median of three rounds after one that warms up.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from peer import PROJECTIONS, VOCABULARY, LeftOut, versions_of

WAYS = ["nibble", "bf16", "compiled", "bnb"]
TEXTS = 3


def measure_nibble(args):
    program = os.environ.get("NIBBLE", str(pathlib.Path(__file__).resolve().parents[2] / "build" / "nibble"))
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.json"
        command = [program, "bench", "generate", "--model", args.model, "--batch", str(args.batch), "--prompt-length", str(args.prompt_length),
                   "--new-tokens", str(args.new_tokens), "--lora-rank", str(args.lora_rank), "--json", str(out)]
        try:
            subprocess.run(command, check=True, stdout=sys.stderr)
        except OSError as error:
            raise LeftOut(f"{program}: {error.strerror}") from None
        row = json.loads(out.read_text())["rows"][0]
    return {"prompt_seconds": row["prompt"]["seconds"]["median"], "token_seconds": row["token"]["seconds"]["median"],
            "memory_bytes": row["memory_bytes"]}


def load(way, args):
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.bfloat16) if way == "bnb" else None
    model = AutoModelForCausalLM.from_pretrained(args.model, quantization_config=nf4, dtype=torch.bfloat16, device_map={"": 0})
    if args.lora_rank:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=args.lora_rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    return model.eval()


def measure_torch(way, args):
    versions = versions_of("bnb" if way == "bnb" else "peft")
    import torch

    model = load(way, args)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator(device="cuda").manual_seed(1)
    cache = {"cache_implementation": "static"} if way == "compiled" else {}

    def seconds(ids, count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            text = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count,
                                  max_new_tokens=count, pad_token_id=0, **cache)
        torch.cuda.synchronize()
        assert text.shape[1] == ids.shape[1] + count, text.shape
        return time.perf_counter() - start

    prompts, tokens = [], []
    for text in range(1 + TEXTS):
        ids = torch.randint(0, VOCABULARY, (args.batch, args.prompt_length), device="cuda", generator=generator)
        first, all_new = seconds(ids, 1), seconds(ids, 1 + args.new_tokens)
        if text > 0:
            prompts.append(first)
            tokens.append((all_new - first) / args.new_tokens)
    return {"prompt_seconds": statistics.median(prompts), "token_seconds": statistics.median(tokens),
            "memory_bytes": torch.cuda.max_memory_reserved(), "versions": versions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("ways", metavar="WAY", nargs="*", help=", ".join(WAYS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-length", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    for way in args.ways:
        if way not in WAYS:
            parser.error(f'"{way}" is no way; there are {", ".join(WAYS)}')
    if not (pathlib.Path(args.model) / "config.json").is_file():
        parser.error(f"{args.model} has no config.json; `peer.py model {args.model}` makes a model there")
    results = {}
    print("| way | prompt ms | new tokens/s | GiB |\n| --- | --- | --- | --- |", flush=True)
    for way in args.ways or WAYS:
        try:
            result = measure_nibble(args) if way == "nibble" else measure_torch(way, args)
        except LeftOut as reason:
            print(f"| {way} | left out: {reason} | | |", flush=True)
            continue
        results[way] = result
        print(f"| {way} | {result['prompt_seconds'] * 1e3:.1f} | {args.batch / result['token_seconds']:.1f} | {result['memory_bytes'] / 2**30:.1f} |", flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"settings": vars(args), "results": results}, indent=1))


if __name__ == "__main__":
    main()
