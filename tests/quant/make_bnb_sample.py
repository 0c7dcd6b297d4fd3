"""Cuts bnb_sample.safetensors out of a model that bitsandbytes saved and what it restores.

usage: make_bnb_sample.py MODEL.safetensors GOLDEN.safetensors OUT.safetensors

MODEL is the tiny model as transformers saves it with bitsandbytes 0.50 (NF4, double quantisation); GOLDEN has
`dequantized.<module>` in f32. Needs the packages safetensors and numpy.
"""
import sys

from safetensors import safe_open
from safetensors.numpy import save_file

MODULE = "model.layers.0.self_attn.k_proj"
PARTS = ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"]

model_path, golden_path, out_path = sys.argv[1:]
with safe_open(model_path, framework="numpy") as model, safe_open(golden_path, framework="numpy") as golden:
    tensors = {f"{MODULE}.weight{part}": model.get_tensor(f"{MODULE}.weight{part}") for part in PARTS}
    tensors[f"dequantized.{MODULE}"] = golden.get_tensor(f"dequantized.{MODULE}")
save_file(tensors, out_path)
