#!/usr/bin/env python3
"""Holds what nibble reads of folders in F64, in eight bits and in bitsandbytes' four against PyTorch and bitsandbytes.

    weights_in.py NIBBLE

The shipped model is stored in each way, by PyTorch and by transformers with bitsandbytes, in shards that part weights from their scales too, and the
golden mixture of experts with those of a layer in two tensors, as transformers 5 has them;
`nibble merge --dtype f32` of each folder has to give the bits that PyTorch or bitsandbytes decode. What nibble itself writes with `quantize`
is loaded by transformers with bitsandbytes, and has to decode to the same. One changed byte has to be noticed each time. Ends with 1 where a
value differs. Needs torch, transformers, accelerate, bitsandbytes and safetensors.
"""
import argparse
import json
import pathlib
import shutil

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from interop import ROOT, expect, expect_red, finish, run, scratch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

TINY = ROOT / "models/tiny-qwen3"
MIXTURE = ROOT / "tests/golden/qwen3-moe/model"
BLOCK = 128


def is_projection(name):
    return name.endswith("_proj.weight")


def to_f8(values, kind):
    return values.clamp(-torch.finfo(kind).max, torch.finfo(kind).max).to(kind)


def by_block(weight):
    rows, columns = -(-weight.shape[0] // BLOCK), -(-weight.shape[1] // BLOCK)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[:weight.shape[0], :weight.shape[1]] = weight.abs()
    scale = padded.reshape(rows, BLOCK, columns, BLOCK).amax(dim=(1, 3)).clamp(min=1e-8) / 448
    factors = scale.repeat_interleave(BLOCK, 0)[:weight.shape[0]].repeat_interleave(BLOCK, 1)[:, :weight.shape[1]]
    codes = to_f8(weight / factors, torch.float8_e4m3fn)
    return codes, {"_scale_inv": scale}, codes.float() * factors


def by_row(weight):
    scale = (weight.abs().amax(dim=1, keepdim=True) / 448).bfloat16()
    codes = to_f8(weight / scale.float(), torch.float8_e4m3fn)
    return codes, {"_scale": scale}, codes.float() * scale.float()


def whole(weight):
    scale = weight.abs().max() / 448
    codes = to_f8(weight / scale, torch.float8_e4m3fn)
    return codes, {"_scale": scale}, codes.float() * scale


def whole_e5m2(weight):
    scale = torch.tensor([0.01])
    codes = to_f8(weight / scale, torch.float8_e5m2)
    return codes, {"_scale": scale}, codes.float() * scale


def in_f64(weight):
    values = weight.double() * (1 + 1e-9)
    return values, {}, values.float()


WEIGHTS = {"type": "float", "num_bits": 8}
WAYS = {"F64": (in_f64, None),
        "F8 by blocks": (by_block, {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}),
        "F8 by rows": (by_row, {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {"weights": WEIGHTS}}}),
        "F8 of one scale": (whole, {"quant_method": "fp8", "activation_scheme": "static"}),
        "F8_E5M2": (whole_e5m2, {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": WEIGHTS}}})}


def write_folder(folder, encode, quantization):
    """Weights in one shard, their scales in the other; returns what they decode to."""
    shutil.copytree(TINY, folder)
    (folder / "model.safetensors").unlink()
    shards, expected = ({}, {}), {}
    for name, tensor in load_file(TINY / "model.safetensors").items():
        encoded, scales, decoded = encode(tensor.float()) if is_projection(name) or encode is in_f64 else (tensor, {}, tensor.float())
        shards[0][name] = encoded
        shards[1].update({name + suffix: scale for suffix, scale in scales.items()})
        expected[name] = decoded
    files = {f"model-0000{i + 1}-of-00002.safetensors": shard for i, shard in enumerate(shards) if shard}
    for name, shard in files.items():
        save_file(shard, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {tensor: name for name, shard in files.items() for tensor in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    if quantization:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return expected


def compare(found, expected, what):
    for name, values in expected.items():
        expect(torch.equal(found[name].view(torch.int32), values.contiguous().view(torch.int32)), f"{what}: {name} differs")


def merged(nibble, folder, output):
    shutil.rmtree(output, ignore_errors=True)
    run(nibble, "merge", "--model", folder, "--output", output, "--dtype", "f32")
    return load_file(output / "model.safetensors")


def change_a_byte(path, tensor):
    """In the middle of a tensor's data, the highest of a value's."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8:8 + length])[tensor]["data_offsets"]
    data[8 + length + ((begin + end) // 2 | 7)] ^= 0x11
    path.write_bytes(data)


def dequantized(model):
    """Of each 4-bit module as bitsandbytes restores it, before it is rounded to the type that was quantised. On processors without AVX-512 it makes
    -0 of FP4's second zero, which is +0 in its table."""
    values = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            module.weight.quant_state.dtype = torch.float32
            values[name + ".weight"] = functional.dequantize_4bit(module.weight.data, module.weight.quant_state) + 0.0
    return values


def load_4bit(folder, **config):
    return AutoModelForCausalLM.from_pretrained(folder, **config, dtype=torch.float32, device_map="cpu")


def check_wide_and_narrow(nibble, folder):
    name = "model.layers.2.mlp.up_proj.weight"
    for way, (encode, quantization) in WAYS.items():
        source = folder / "source"
        shutil.rmtree(source, ignore_errors=True)
        expected = write_folder(source, encode, quantization)
        compare(merged(nibble, source, folder / "merged"), expected, way)
        change_a_byte(source / "model-00001-of-00002.safetensors", name)
        expect_red(way, lambda: compare(merged(nibble, source, folder / "merged"), expected, way))
        print(f"{way}: {len(expected)} tensors", flush=True)


def check_bitsandbytes_in(nibble, folder):
    for kind, double, storage in (("nf4", True, "uint8"), ("nf4", False, "bfloat16"), ("fp4", True, "bfloat16"), ("fp4", False, "uint8")):
        what = f"bitsandbytes {kind}, double quantisation {double}, storage {storage}"
        source = folder / "bnb"
        shutil.rmtree(source, ignore_errors=True)
        model = load_4bit(TINY, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double,
                                                   bnb_4bit_quant_storage=storage, llm_int8_skip_modules=["lm_head", "model.layers.1.mlp.down_proj"]))
        model.save_pretrained(source)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / file, source)
        expected = dequantized(model)
        expect(len(expected) == 27, f"{what}: {len(expected)} modules in 4 bits")
        found = merged(nibble, source, folder / "merged")
        compare(found, expected, what)
        left = load_file(TINY / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].float()
        compare(found, {"model.layers.1.mlp.down_proj.weight": left}, f"{what}, the module that was left out")
        change_a_byte(source / "model.safetensors", "model.layers.0.self_attn.q_proj.weight")
        expect_red(what, lambda: compare(merged(nibble, source, folder / "merged"), expected, what))
        print(f"{what}: {len(expected)} modules", flush=True)


def check_bitsandbytes_out(nibble, folder):
    for double in (False, True):
        what = f"nibble quantize, double quantisation {double}"
        output = folder / "quantized"
        shutil.rmtree(output, ignore_errors=True)
        run(nibble, "quantize", "--model", TINY, "--output", output, *(["--double-quant"] if double else []))
        expected = dequantized(load_4bit(output))
        expect(len(expected) == 28, f"{what}: {len(expected)} modules in 4 bits")
        compare(merged(nibble, output, folder / "merged"), expected, what)
        change_a_byte(output / "model.safetensors", "model.layers.3.mlp.gate_proj.weight")
        expect_red(what, lambda: compare(merged(nibble, output, folder / "merged"), expected, what))
        print(f"{what}: {len(expected)} modules", flush=True)


def check_fused_experts(nibble, folder):
    what, source, fused = "experts in two tensors", folder / "fused", "model.layers.1.mlp.experts.gate_up_proj"
    AutoModelForCausalLM.from_pretrained(MIXTURE, dtype=torch.float32).save_pretrained(source, save_original_format=False)
    expect(fused in load_file(source / "model.safetensors"), f"{what}: transformers has not written {fused}")
    expected = {name: tensor.float() for name, tensor in load_file(MIXTURE / "model.safetensors").items()}
    compare(merged(nibble, source, folder / "merged"), expected, what)
    change_a_byte(source / "model.safetensors", fused)
    expect_red(what, lambda: compare(merged(nibble, source, folder / "merged"), expected, what))
    print(f"{what}: {len(expected)} tensors", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", type=pathlib.Path)
    nibble = parser.parse_args().nibble
    with scratch() as folder:
        check_wide_and_narrow(nibble, folder)
        check_bitsandbytes_in(nibble, folder)
        check_bitsandbytes_out(nibble, folder)
        check_fused_experts(nibble, folder)


if __name__ == "__main__":
    finish(main)
