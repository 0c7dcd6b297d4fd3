#!/usr/bin/env python3
"""Makes the files beside it as `mlx_lm.lora --train` writes them (mlx_lm/lora.py, tuner/trainer.py): an adapter of the tiny model's
last two layers with mlx_lm's own keys for qwen3. Element n of the file's tensors, in the order of the names, is n / 1000."""
import json
import os

import numpy as np
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
RANK, HIDDEN = 2, 256
OUT = {"q_proj": 384, "v_proj": 128}
shapes = {}
for layer in (2, 3):
    for name, out in OUT.items():
        shapes[f"model.layers.{layer}.self_attn.{name}.lora_a"] = (HIDDEN, RANK)
        shapes[f"model.layers.{layer}.self_attn.{name}.lora_b"] = (RANK, out)
tensors, first = {}, 0
for name in sorted(shapes):
    count = int(np.prod(shapes[name]))
    tensors[name] = (np.arange(first, first + count, dtype=np.float32) / 1000).reshape(shapes[name])
    first += count
save_file(tensors, os.path.join(HERE, "adapters.safetensors"), metadata={"format": "mlx"})
config = {
    "adapter_path": "adapters", "batch_size": 4, "config": None, "data": "data", "fine_tune_type": "lora", "grad_checkpoint": False,
    "iters": 1000, "learning_rate": 1e-05, "lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": 20.0}, "lr_schedule": None,
    "mask_prompt": False, "max_seq_length": 2048, "model": "tiny-qwen3", "num_layers": 2, "optimizer": "adam", "optimizer_config": {},
    "resume_adapter_file": None, "save_every": 100, "seed": 0, "steps_per_eval": 200, "steps_per_report": 10, "test": False,
    "test_batches": 500, "train": True, "val_batches": 25}
with open(os.path.join(HERE, "adapter_config.json"), "w") as file:
    json.dump(config, file, indent=4)
