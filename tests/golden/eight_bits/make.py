#!/usr/bin/env python3
"""make.py: makes weights.safetensors, tensors as folders in eight bits and in F64 have them, and decoded.safetensors, what PyTorch makes of
them in float32. Needs torch and safetensors."""
import pathlib

import torch
from safetensors.torch import save_file

BLOCK = (16, 24)  # rows and columns with one scale; neither divides the matrix
ROWS, COLUMNS = 40, 50


def codes(kind, seed):
    """Every code of the type that is a finite number, then random ones of them."""
    finite = torch.arange(256, dtype=torch.uint8).view(kind).float().isfinite()
    known = torch.arange(256, dtype=torch.uint8)[finite]
    chosen = torch.randint(len(known), (ROWS * COLUMNS,), generator=torch.Generator().manual_seed(seed))
    chosen[:len(known)] = torch.arange(len(known))
    return known[chosen].view(kind).reshape(ROWS, COLUMNS)


def main():
    torch.manual_seed(1)
    here = pathlib.Path(__file__).resolve().parent
    rows, columns = -(-ROWS // BLOCK[0]), -(-COLUMNS // BLOCK[1])
    by_block = torch.rand(rows, columns) * 0.01 + 1e-4
    by_power = torch.randint(100, 140, (rows, columns), dtype=torch.uint8)
    a_row = (torch.rand(ROWS, 1) * 0.01 + 1e-4).bfloat16()
    weights, decoded = {}, {}

    def spread(scale):
        return scale.repeat_interleave(BLOCK[0], 0)[:ROWS].repeat_interleave(BLOCK[1], 1)[:, :COLUMNS]

    def add(name, values, suffix="", scale=None, factors=None):
        weights[name] = values
        decoded[name] = values.float()
        if scale is not None:
            weights[name + suffix] = scale
            decoded[name] = decoded[name] * (scale.float() if factors is None else factors)

    add("blocks.weight", codes(torch.float8_e4m3fn, 2), "_scale_inv", by_block, spread(by_block))
    add("powers.weight", codes(torch.float8_e4m3fn, 3), "_scale_inv", by_power.view(torch.float8_e8m0fnu),
        spread(torch.exp2(by_power.float() - 127)))
    add("rows.weight", codes(torch.float8_e4m3fn, 4), "_scale", a_row)
    add("whole.weight", codes(torch.float8_e5m2, 5), "_scale", torch.tensor(0.0123))
    add("wide.weight", torch.randn(5, 7, dtype=torch.float64) * 1e-3)
    add("wide_norm.weight", torch.tensor([1 / 3, -2 / 3, 1e-310, 1e-40, 3.4e38, 1 + 2**-24, 1 + 3 * 2**-24], dtype=torch.float64))
    weights["half.weight"] = torch.randn(3, 4).bfloat16()
    weights["blocks.input_scale"] = torch.tensor(1.0)
    save_file(weights, here / "weights.safetensors")
    save_file(decoded, here / "decoded.safetensors")


if __name__ == "__main__":
    main()
