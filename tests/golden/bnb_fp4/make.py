#!/usr/bin/env python3
"""make.py: makes model.safetensors, two matrices as bitsandbytes has them in FP4, with double quantisation and without, and
dequantized.safetensors, what it makes of them. Needs bitsandbytes, torch and safetensors."""
import pathlib

import torch
from bitsandbytes import functional
from safetensors.torch import save_file


def main():
    here = pathlib.Path(__file__).resolve().parent
    tensors, dequantized = {}, {}
    for name, rows, nested in (("double.weight", 39, True), ("single.weight", 3, False)):
        weight = torch.randn(rows, 448, generator=torch.Generator().manual_seed(1 + nested)) * 0.05
        codes, state = functional.quantize_4bit(weight, quant_type="fp4", compress_statistics=nested)
        tensors[name] = codes
        for suffix, tensor in state.as_dict(packed=True).items():
            tensors[f"{name}.{suffix}"] = tensor
        dequantized[name] = functional.dequantize_4bit(codes, state)
    save_file(tensors, here / "model.safetensors")
    save_file(dequantized, here / "dequantized.safetensors")


if __name__ == "__main__":
    main()
