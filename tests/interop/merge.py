#!/usr/bin/env python3
"""Loads a folder that `nibble merge --onto nf4 --dtype f32` wrote into transformers and compares what it computes.

    merge.py MERGED --golden FILE              with a golden file of the model and adapter that were merged
    merge.py MERGED --model D --adapter D      with the adapter in PEFT, over the model through NF4; also a trained head's

Needs torch, transformers and peft, so it is no part of ./check. Ends with 1 where the loss differs by more than 1e-5 of
itself or the logits' cosine is below 0.999999.
"""

import argparse
import pathlib
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from make_golden import through_nf4


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def run(model, inputs):
    with torch.no_grad():
        result = model(**inputs)
    return result.loss.item(), result.logits[0].double().flatten()


def from_golden(file):
    golden = load_file(file)
    inputs = {name: golden[name].long() for name in ("input_ids", "attention_mask", "labels")}
    return inputs, golden["loss"].item(), golden["logits0"].double().flatten()


def from_peft(model_folder, adapter):
    base = load(model_folder)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.copy_(through_nf4(parameter))
    torch.manual_seed(0)
    ids = torch.randint(base.config.vocab_size, (4, 40))
    inputs = {"input_ids": ids, "labels": ids}
    return inputs, *run(PeftModel.from_pretrained(base, adapter).eval(), inputs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("merged")
    parser.add_argument("--golden")
    parser.add_argument("--model")
    parser.add_argument("--adapter")
    options = parser.parse_args()
    inputs, loss, logits = from_golden(options.golden) if options.golden else from_peft(options.model, options.adapter)
    found_loss, found = run(load(options.merged), inputs)
    cosine = torch.nn.functional.cosine_similarity(found, logits, dim=0).item()
    difference = abs(found_loss / loss - 1)
    print(f"The loss {found_loss:.6f} differs by {difference:.2g} of itself, the worst logit by "
          f"{(found - logits).abs().max().item():.2g}; their cosine is 1 - {1 - cosine:.2g}.")
    return 0 if difference <= 1e-5 and cosine >= 0.999999 else 1


if __name__ == "__main__":
    sys.exit(main())
