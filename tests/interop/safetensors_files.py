#!/usr/bin/env python3
"""Reads what nibble writes in safetensors with the Python package, and holds the values against their definition in numpy.

    safetensors_files.py NIBBLE

A short run's adapter and checkpoint, the merged model in f32, f16 and bf16, whole and in shards with their index, and the MLX adapter. A byte
that is changed in each file has to be noticed. Ends with 1 where something differs. Needs safetensors, torch and numpy.
"""
import argparse
import json
import pathlib
import shutil

import torch
from interop import ROOT, expect, expect_red, finish, run, scratch
from safetensors.torch import load_file

TINY = ROOT / "models/tiny-qwen3"
RANK, ALPHA = 4, 10


def load_folder(folder):
    """All tensors of a model folder; where it has an index, each from the file that this names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    files = {name: load_file(folder / name) for name in set(weight_map.values())}
    expect(sum(map(len, files.values())) == len(weight_map), "the index names other tensors than the shards have")
    total = json.loads(index.read_text())["metadata"]["total_size"]
    expect(total == sum(t.nbytes for file in files.values() for t in file.values()), "total_size of the index")
    return {tensor: files[name][tensor] for tensor, name in weight_map.items()}


def merged(adapter):
    """W + alpha / rank * B A, in double."""
    base, lora = load_file(TINY / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    values = {}
    for name, tensor in base.items():
        prefix = "base_model.model." + name.removesuffix(".weight")
        values[name] = tensor.double()
        if prefix + ".lora_A.weight" in lora:
            a, b = (lora[f"{prefix}.lora_{which}.weight"].double() for which in "AB")
            values[name] = values[name] + ALPHA / RANK * (b @ a)
    return values


def compare_merged(folder, expected, dtype):
    found = load_folder(folder)
    expect(set(found) == set(expected), "names of the merged tensors")
    for name, values in expected.items():
        expect(found[name].dtype == dtype, f"{name} is {found[name].dtype}, not {dtype}")
        # A rounding to the type, and those of the sum in f32.
        bound = values.abs() * torch.finfo(dtype).eps + values.abs().max() * 1e-6 + 1e-7
        expect(bool(((found[name].double() - values).abs() <= bound).all()), f"{name} differs in {dtype}")


def compare_checkpoint(checkpoint, adapter):
    moments, lora = load_file(checkpoint / "optimizer.safetensors"), load_file(checkpoint / "adapter_model.safetensors")
    expect(len(lora) == 56 and len(moments) == 2 * len(lora), "number of a checkpoint's tensors")
    for name, values in lora.items():
        expect(values.dtype == torch.float32 and bool(values.isfinite().all()), f"{name} of the checkpoint")
        first, second = moments[f"exp_avg.{name}"], moments[f"exp_avg_sq.{name}"]
        expect(first.numel() == values.numel() == second.numel() and bool((second >= 0).all()), f"moments of {name}")
        # After one step from nothing exp_avg is (1 - beta1) g, and exp_avg_sq (1 - beta2) g^2.
        expect(torch.allclose((first / 0.1) ** 2, second / 0.001, rtol=1e-5, atol=1e-30), f"moments of {name} are of no one gradient")
    expect(all(torch.equal(values, load_file(adapter / "adapter_model.safetensors")[name]) for name, values in lora.items()), "the last checkpoint's adapter")


def compare_mlx(folder, adapter):
    mlx, lora = load_file(folder / "adapters.safetensors"), load_file(adapter / "adapter_model.safetensors")
    expect(len(mlx) == len(lora), "number of the MLX adapter's tensors")
    for name, values in lora.items():
        other = name.removeprefix("base_model.model.").removesuffix(".weight").replace("lora_A", "lora_a").replace("lora_B", "lora_b")
        expect(torch.equal(mlx[other], values.T), f"{name} for MLX")
    settings = json.loads((folder / "adapter_config.json").read_text())
    expect(settings["lora_parameters"]["scale"] == ALPHA / RANK, "scale for MLX")


def spoiled(folder, to, file):
    """A copy with a changed byte in the middle of the file's largest tensor."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    data = bytearray((to / file).read_bytes())
    length = int.from_bytes(data[:8], "little")
    tensors = {name: entry for name, entry in json.loads(data[8:8 + length]).items() if name != "__metadata__"}
    begin, end = max((entry["data_offsets"] for entry in tensors.values()), key=lambda offsets: offsets[1] - offsets[0])
    data[8 + length + (begin + end) // 2 | 3] ^= 0x44  # the high byte of a value of two or four
    (to / file).write_bytes(data)
    return to


def check(nibble, folder):
    data, adapter = folder / "rows.jsonl", folder / "adapter"
    with open(ROOT / "data/define/train.jsonl", encoding="utf-8") as rows:
        data.write_text("".join(row for row, _ in zip(rows, range(4))))
    run(nibble, "train", "--model", TINY, "--data", data, "--output", adapter, "--max-steps", 1, "--batch-size", 4, "--lora-rank", RANK, "--lora-alpha",
        ALPHA, "--learning-rate", 0.01, "--warmup-ratio", 0, "--max-grad-norm", 0)
    compare_checkpoint(adapter / "checkpoint-1", adapter)
    expect_red("checkpoint", lambda: compare_checkpoint(spoiled(adapter / "checkpoint-1", folder / "red", "optimizer.safetensors"), adapter))
    print("adapter and checkpoint", flush=True)
    expected = merged(adapter)
    for name, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        for size in ("5GB", "1MB"):
            output = folder / f"{name}-{size}"
            run(nibble, "merge", "--model", TINY, "--adapter", adapter, "--output", output, "--dtype", name, "--max-shard-size", size)
            compare_merged(output, expected, dtype)
            file = max(output.glob("*.safetensors"), key=lambda path: path.stat().st_size).name
            expect_red(f"{name}, {size}", lambda: compare_merged(spoiled(output, folder / "red", file), expected, dtype))
            print(f"merged in {name}, {len(list(output.glob('*.safetensors')))} files", flush=True)
    run(nibble, "export", "--for", "mlx", "--model", TINY, "--adapter", adapter, "--output", folder / "mlx")
    compare_mlx(folder / "mlx", adapter)
    expect_red("MLX", lambda: compare_mlx(spoiled(folder / "mlx", folder / "red", "adapters.safetensors"), adapter))
    print("MLX adapter", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", type=pathlib.Path)
    nibble = parser.parse_args().nibble
    with scratch() as folder:
        check(nibble, folder)


if __name__ == "__main__":
    finish(main)
