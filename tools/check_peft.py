#!/usr/bin/env python3
"""Loads an adapter that nibble wrote, with or without a trained head, into PEFT and compares each row's loss with `nibble eval`.

    check_peft.py build/nibble MODEL ADAPTER DATA     DATA: rows of "messages", all of whose tokens are counted here

Needs torch, transformers and peft, so it is no part of ./check. The base is quantised to NF4 and decoded here too, so
that both have the same one. Ends with 1 where a loss differs by more than 1e-5 of itself.
"""

import json
import subprocess
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_golden import through_nf4


def main(nibble, model_folder, adapter, data):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.copy_(through_nf4(parameter))
    model = PeftModel.from_pretrained(base, adapter).eval()

    command = [nibble, "eval", "--model", model_folder, "--adapter", adapter, "--data", data, "--train-on", "all", "--rows"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [json.loads(line) for line in lines if line.startswith("{")]
    with open(data, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    worst = 0.0
    for row, found in zip(rows, ours, strict=True):
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        assert found["tokens"] == ids.shape[1] - 1, "the tokens differ in number"
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        worst = max(worst, abs(found["loss"] / loss - 1))
    print(f"{len(rows)} rows; the worst loss differs by {worst:.2g} of itself.")
    return 0 if worst <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
