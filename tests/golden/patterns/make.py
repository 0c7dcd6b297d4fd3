#!/usr/bin/env python3
"""Makes the files beside it with transformers and peft: an adapter of some layers of the tiny model whose ranks and alphas
differ by module, and its logits, loss and gradients on a short row, in the form of ../README.md.
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

torch.manual_seed(5)
model = AutoModelForCausalLM.from_pretrained(os.path.join(ROOT, "models/tiny-qwen3"), dtype=torch.float32, attn_implementation="eager")
with torch.no_grad():
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in PROJECTIONS:
            module.weight.copy_(through_nf4(module.weight))
model = get_peft_model(model, LoraConfig(
    r=2, lora_alpha=3, use_rslora=False, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "up_proj"],
    layers_to_transform=[0, 2], rank_pattern={"q_proj": 3, r"layers\.[2-9]\.self_attn\.v_proj": 1},
    alpha_pattern={"^model.layers.2.self_attn.q_proj": 1, "mlp.up_proj": 5.5, "proj": 9}))
model.peft_config["default"].base_model_name_or_path = "tiny-qwen3"
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.05 * torch.randn_like(parameter))
model.eval()
ids = torch.tensor([[17, 3020, 901, 44, 2500, 1]])
labels = torch.tensor([[-100, -100, 901, 44, 2500, 1]])
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
