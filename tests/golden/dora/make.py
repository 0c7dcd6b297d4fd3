#!/usr/bin/env python3
"""Makes the files beside it with transformers and peft: a DoRA adapter of one layer of the tiny model, whose magnitudes have moved
off their start, and its logits, loss and gradients on a short row, in the form of ../README.md.
"""
import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "../../..")
sys.path.insert(0, os.path.join(ROOT, "tools"))
from make_golden import PROJECTIONS, through_nf4  # noqa: E402

torch.manual_seed(6)
model = AutoModelForCausalLM.from_pretrained(os.path.join(ROOT, "models/tiny-qwen3"), dtype=torch.float32, attn_implementation="eager")
with torch.no_grad():
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in PROJECTIONS:
            module.weight.copy_(through_nf4(module.weight))
model = get_peft_model(model, LoraConfig(
    r=1, lora_alpha=2, use_dora=True, task_type="CAUSAL_LM", target_modules=PROJECTIONS, layers_to_transform=[2],
    rank_pattern={"q_proj": 3, "down_proj": 2}))
model.peft_config["default"].base_model_name_or_path = "tiny-qwen3"
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.05 * torch.randn_like(parameter))
        if "lora_magnitude_vector" in name:
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
model.eval()
ids = torch.tensor([[17, 3020, 901, 44]])
labels = torch.tensor([[-100, 3020, 901, 44]])
logits = model(input_ids=ids).logits
loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
loss.backward()
tensors = {"input_ids": ids.int(), "labels": labels.int(), "attention_mask": torch.ones_like(ids).int(),
           "logits0": logits[0].detach().clone(), "loss": loss.detach().reshape(1)}
for name, parameter in model.named_parameters():
    if parameter.grad is not None:
        tensors["grad." + name.replace(".default", "")] = parameter.grad.clone()
save_file(tensors, os.path.join(HERE, "golden.safetensors"))
model.save_pretrained(os.path.join(HERE, "adapter_nonzero"))
os.remove(os.path.join(HERE, "adapter_nonzero/README.md"))
