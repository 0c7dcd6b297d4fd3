#!/usr/bin/env python3
"""Loads adapters that nibble trained into PEFT, and adapters that PEFT saved into nibble, and expects the same logits and loss.

    peft_adapters.py NIBBLE

Each kind of adapter is trained by `nibble train` for two steps, or made by PEFT with random values; PEFT then computes a golden file over the
shipped model, or one whose head is not tied, in NF4, and `nibble verify` has to find its own logits and loss within the bars of docs/numerics.md. Matrices that are rolled by
one row have to be noticed. Ends with 1 where one differs. Needs torch, transformers, peft and safetensors.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import torch
from interop import ROOT, Differs, expect_red, finish, run, scratch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

sys.path.append(str(ROOT / "tools"))
from make_golden import PROJECTIONS, through_nf4

TINY = ROOT / "models/tiny-qwen3"
UNTIED = ROOT / "tests/golden/llama/model"  # with the tokenizer of the other
ALL = [f"{name}" for name in PROJECTIONS]

TRAINED = {
    "LoRA": [],
    "rsLoRA": ["--use-rslora", "--lora-alpha", "7"],
    "some projections": ["--target-modules", "q_proj", "v_proj", "down_proj"],
    "ranks and alphas by module": ["--rank-pattern", "down_proj=8", "layers.[0-1].mlp.gate_proj=2", "--alpha-pattern", "q_proj=32"],
    "some layers": ["--layers-to-transform", "0,2-3"],
    "a trained head": ["--train-head"],
    "DoRA": ["--use-dora"],
    "modules by an expression": ["--target-modules", r".*\.[02]\.(self_attn\.(q|o)|mlp\.up)_proj"],
    "rows of tokens": ["--train-tokens", "<|im_start|>", "17", "3020"],
}
SAVED = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 7},
    "ranks and alphas by module": {"rank_pattern": {"down_proj": 8, r"layers.[0-1].self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
    "some layers": {"layers_to_transform": [1, 3], "layers_pattern": "layers"},
    "a head": {"modules_to_save": ["lm_head"]},
    "all-linear": {"target_modules": "all-linear"},
    "DoRA": {"use_dora": True},
    "modules by an expression": {"target_modules": r".*\.(q|down)_proj", "exclude_modules": r".*layers\.1\..*"},
    "rows of tokens": {"trainable_token_indices": [3020, 7, 901]},
}
TRAINED_UNTIED = {
    "rows of tokens under an untied head": ["--train-tokens", "<|im_start|>", "17"],
    "rows of tokens in embedding and head": ["--train-tokens", "<|im_start|>", "17", "--train-tokens-head"],
}
SAVED_UNTIED = {
    "rows of tokens under an untied head": {"trainable_token_indices": [3020, 7, 901]},
    "rows of tokens in embedding and head": {"trainable_token_indices": {"embed_tokens": [3020, 7], "lm_head": [901, 7, 5]}},
    "rows of tokens in the head": {"trainable_token_indices": {"lm_head": [901, 7]}},
}


def base_model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.copy_(through_nf4(parameter))
    return model


def write_golden(base, adapter, path):
    """What PEFT computes, in the form that `nibble verify` compares with."""
    model = PeftModel.from_pretrained(base_model(base), adapter, is_trainable=True).eval()
    ids = torch.randint(5, 4000, (3, 24), generator=torch.Generator().manual_seed(1))
    ids[0, 2:6] = torch.tensor([3020, 7, 901, 17])  # whose rows some adapters have
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    tensors = {"input_ids": ids.int(), "labels": labels.int(), "attention_mask": mask.int(), "logits0": logits[0].detach().clone(),
               "loss": loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and ("lora_" in name or "trainable_tokens" in name):
            tensors["grad." + name.replace(".default", "")] = parameter.grad.clone()
    save_file(tensors, path)


def verify(nibble, base, adapter, golden):
    done = subprocess.run(list(map(str, [nibble, "verify", "--model", base, "--adapter", adapter, "--golden", golden])), capture_output=True, text=True)
    if done.returncode:
        raise Differs(f"{adapter.name}: {(done.stdout + done.stderr).strip()}")


def rolled(adapter, to):
    """The same adapter with each matrix A, or the head or rows of tokens where it has them, rolled by one row."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(adapter, to, ignore=shutil.ignore_patterns("checkpoint-*"))
    path = to / "adapter_model.safetensors"
    tensors = load_file(path)
    others = [name for name in tensors if "lm_head" in name or "trainable_tokens" in name]
    for name in others or [name for name in tensors if "lora_A" in name]:
        tensors[name] = tensors[name].roll(1, 0)
    save_file(tensors, path, metadata={"format": "pt"})
    return to


def compare(nibble, what, base, adapter, folder):
    golden = folder / "golden.safetensors"
    write_golden(base, adapter, golden)
    verify(nibble, base, adapter, golden)
    expect_red(what, lambda: verify(nibble, base, rolled(adapter, folder / "rolled"), golden))
    print(what, flush=True)


def check_trained(nibble, base, kinds, folder):
    data = folder / "rows.jsonl"
    with open(ROOT / "data/define/train.jsonl", encoding="utf-8") as rows:
        data.write_text("".join(row for row, _ in zip(rows, range(8))))
    for what, options in kinds.items():
        output = folder / what.replace(" ", "_")
        run(nibble, "train", "--model", base, "--data", data, "--output", output, "--max-steps", 2, "--batch-size", 4, "--lora-rank", 4,
            "--learning-rate", 0.02, "--warmup-ratio", 0, "--save-every", 0, *options)
        compare(nibble, f"trained by nibble: {what}", base, output, folder)


def check_saved(nibble, base, kinds, folder):
    for what, options in kinds.items():
        torch.manual_seed(3)
        model = get_peft_model(base_model(base), LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": ALL, "task_type": "CAUSAL_LM", **options}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_magnitude_vector" in name:
                    parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
                elif "lora_" in name:
                    parameter.normal_(std=0.05)
                elif "modules_to_save" in name or "trainable_tokens" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.01)
        adapter = folder / ("saved_" + what.replace(" ", "_"))
        model.save_pretrained(adapter)
        compare(nibble, f"saved by PEFT: {what}", base, adapter, folder)


def with_tokenizer(folder):
    shutil.copytree(UNTIED, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder)
    return folder


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", type=pathlib.Path)
    nibble = parser.parse_args().nibble
    with scratch() as folder:
        check_trained(nibble, TINY, TRAINED, folder)
        check_saved(nibble, TINY, SAVED, folder)
        untied = folder / "untied"
        untied.mkdir()
        base = with_tokenizer(untied / "base")
        check_trained(nibble, base, TRAINED_UNTIED, untied)
        check_saved(nibble, base, SAVED_UNTIED, untied)


if __name__ == "__main__":
    finish(main)
