#!/usr/bin/env python3
"""Makes fused/ beside it: the model as transformers 5 saves it with save_original_format=False, all experts of a layer in two tensors."""
import pathlib

from transformers import Qwen3MoeForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
Qwen3MoeForCausalLM.from_pretrained(HERE / "model", dtype="bfloat16").save_pretrained(HERE / "fused", save_original_format=False)
(HERE / "fused/generation_config.json").unlink()
