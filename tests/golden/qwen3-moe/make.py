#!/usr/bin/env python3
"""Makes the files beside it with transformers and peft: a small random Qwen3-MoE, a random adapter of its attention's and its experts'
projections, and logits, loss and gradients on three rows, in the form of ../README.md.

transformers 5 keeps experts as one tensor, of which peft has no modules; here each expert becomes a module again, as its files have
it, and what that computes is held against transformers first.
"""
import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tools"))
from make_golden import PROJECTIONS, through_nf4  # noqa: E402


class Expert(torch.nn.Module):
    def __init__(self, gate_up, down):
        super().__init__()
        size = down.shape[1]
        self.gate_proj = torch.nn.Linear(down.shape[0], size, bias=False)
        self.up_proj = torch.nn.Linear(down.shape[0], size, bias=False)
        self.down_proj = torch.nn.Linear(size, down.shape[0], bias=False)
        for module, weight in ((self.gate_proj, gate_up[:size]), (self.up_proj, gate_up[size:]), (self.down_proj, down)):
            module.weight = torch.nn.Parameter(weight.detach().clone())

    def forward(self, x):
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(torch.nn.ModuleList):
    def forward(self, x, chosen, weights):
        result = torch.zeros_like(x)
        for index, expert in enumerate(self):
            token, place = torch.where(chosen == index)
            result = result.index_add(0, token, expert(x[token]) * weights[token, place, None])
        return result


torch.manual_seed(23)
config = Qwen3MoeConfig(vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2,
                        norm_topk_prob=True, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
                        max_position_embeddings=256, initializer_range=0.1, tie_word_embeddings=True, eos_token_id=3, pad_token_id=0,
                        attn_implementation="eager")
model = Qwen3MoeForCausalLM(config)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("mlp.gate.weight"):
            parameter.normal_(std=0.5)
model.bfloat16().save_pretrained(os.path.join(HERE, "model"))
model = Qwen3MoeForCausalLM.from_pretrained(os.path.join(HERE, "model"), dtype=torch.float32, attn_implementation="eager").eval()
lengths = (26, 17, 23)
ids = torch.zeros(3, max(lengths), dtype=torch.long)
mask = torch.zeros_like(ids)
for row, length in enumerate(lengths):
    ids[row, :length] = torch.randint(1, config.vocab_size, (length,))
    mask[row, :length] = 1
labels = torch.where(mask == 1, ids, -100)
labels[:, :5] = -100

with torch.no_grad():
    expected = model(input_ids=ids, attention_mask=mask).logits
    for layer in model.model.layers:
        fused = layer.mlp.experts
        layer.mlp.experts = Experts(Expert(fused.gate_up_proj[i], fused.down_proj[i]) for i in range(config.num_experts))
    assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-5)
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in PROJECTIONS:
            module.weight.copy_(through_nf4(module.weight))
model.config.model_type = "qwen3"  # else peft looks for the one tensor
model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", target_modules=list(PROJECTIONS)))
model.peft_config["default"].base_model_name_or_path = "model"
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.2 * torch.randn_like(parameter))
model.eval()
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
