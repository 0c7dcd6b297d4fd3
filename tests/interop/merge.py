#!/usr/bin/env python3
"""Loads a folder that `nibble merge --onto nf4 --dtype f32` wrote into transformers and compares it with a golden file.

    merge.py MERGED GOLDEN     GOLDEN: of the model and adapter that were merged, as tools/make_golden.py writes it

Needs torch and transformers, so it is no part of ./check. Ends with 1 where the loss differs by more than 1e-5 of itself
or the logits' cosine is below 0.999999.
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main(merged, golden_file):
    golden = load_file(golden_file)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        result = model(**{name: golden[name].long() for name in ("input_ids", "attention_mask", "labels")})
    logits, expected = result.logits[0].double().flatten(), golden["logits0"].double().flatten()
    cosine = torch.nn.functional.cosine_similarity(logits, expected, dim=0).item()
    difference = (logits - expected).abs().max().item()
    loss = abs(result.loss.item() / golden["loss"].item() - 1)
    print(f"The loss differs by {loss:.2g} of itself, the worst logit by {difference:.2g}; their cosine is 1 - {1 - cosine:.2g}.")
    return 0 if loss <= 1e-5 and cosine >= 0.999999 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
