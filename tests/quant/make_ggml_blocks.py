"""Writes ggml_blocks.safetensors: random blocks of every type that nibble decodes with the f32 values that the Python package
`gguf` makes of them, and random values with the blocks that it quantises them to.

usage: make_ggml_blocks.py OUT.safetensors

`TYPE.blocks` (U8) and `TYPE.values` (F32); `quantize.values` and `quantize.TYPE` (U8). Needs gguf 0.19, safetensors and numpy.
"""
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.numpy import save_file

DECODED = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}


def random_blocks(name, count, rng):
    """All bits random, but scales are numbers: a NaN has no one way to be written."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal(count * 16).astype(np.float32)
        return quants.quantize(values, GGMLQuantizationType[name]).view(np.uint8).reshape(-1)
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES[name]:
        scales = (rng.standard_normal(count) * 0.1).astype(np.float16)
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks.reshape(-1)


def main():
    rng = np.random.default_rng(7)
    tensors = {}
    for name in DECODED:
        blocks = random_blocks(name, 4, rng)
        tensors[name + ".blocks"] = blocks
        tensors[name + ".values"] = np.ascontiguousarray(quants.dequantize(blocks, GGMLQuantizationType[name]).reshape(-1))
    # A block of zeros, one of ties, and values of usual size.
    values = np.concatenate([np.zeros(32), np.tile([1.5, -1.5, 0.5, -0.25], 8), rng.standard_normal(192) * 0.05]).astype(np.float32)
    tensors["quantize.values"] = values
    for name in ("F16", "BF16", "Q8_0", "Q4_0"):
        tensors["quantize." + name] = np.ascontiguousarray(quants.quantize(values, GGMLQuantizationType[name]).view(np.uint8).reshape(-1))
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
