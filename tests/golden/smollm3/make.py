#!/usr/bin/env python3
"""Makes the files beside it with transformers and peft: a small random SmolLM3 whose second layer does not rotate queries and keys,
a random adapter of its seven projections, and logits, loss and gradients on three rows, in the form of ../README.md.
"""
import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import SmolLM3Config, SmolLM3ForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tools"))
from make_golden import PROJECTIONS, through_nf4  # noqa: E402

torch.manual_seed(11)
config = SmolLM3Config(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
                       max_position_embeddings=256, no_rope_layer_interval=2, initializer_range=0.08, bos_token_id=None, eos_token_id=3,
                       pad_token_id=0, attn_implementation="eager")
model = SmolLM3ForCausalLM(config)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
model.bfloat16().save_pretrained(os.path.join(HERE, "model"))
model = SmolLM3ForCausalLM.from_pretrained(os.path.join(HERE, "model"), dtype=torch.float32, attn_implementation="eager")
with torch.no_grad():
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in PROJECTIONS:
            module.weight.copy_(through_nf4(module.weight))
model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", target_modules=list(PROJECTIONS)))
model.peft_config["default"].base_model_name_or_path = "model"
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.2 * torch.randn_like(parameter))
model.eval()
lengths = (26, 17, 23)
ids = torch.zeros(3, max(lengths), dtype=torch.long)
mask = torch.zeros_like(ids)
for row, length in enumerate(lengths):
    ids[row, :length] = torch.randint(1, config.vocab_size, (length,))
    mask[row, :length] = 1
labels = torch.where(mask == 1, ids, -100)
labels[:, :5] = -100
logits = model(input_ids=ids, attention_mask=mask).logits
loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
loss.backward()
tensors = {"input_ids": ids.int(), "labels": labels.int(), "attention_mask": mask.int(), "logits0": logits[0].detach().clone(),
           "loss": loss.detach().reshape(1)}
for name, parameter in model.named_parameters():
    if parameter.grad is not None:
        tensors["grad." + name.replace(".default", "")] = parameter.grad.clone()
save_file(tensors, os.path.join(HERE, "golden.safetensors"))
model.save_pretrained(os.path.join(HERE, "adapter_nonzero"))
os.remove(os.path.join(HERE, "adapter_nonzero/README.md"))
