#!/usr/bin/env python3
"""Makes the files beside it with transformers and peft: adapters of one layer that have rows of tokens (trainable_token_indices), in the form of
../README.md: logits of a short row, loss and gradients of that and a longer one; and the rows after each of three updates by AdamW (learning rate 0.01, clipping at norm
1, decay 0.1) with the losses before them. `tied/` is of the tiny model, whose head is the embedding, `untied/` of ../llama, with other tokens in
the head than in the embedding.
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


def make(kind, base, tokens, short):
    """`tokens` as PEFT's trainable_token_indices; all but the first token of a row are labels."""
    torch.manual_seed(8)
    folder = os.path.join(HERE, kind)
    os.makedirs(folder, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(os.path.join(ROOT, base), dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.rsplit(".", 1)[-1] in PROJECTIONS:
                module.weight.copy_(through_nf4(module.weight))
    model = get_peft_model(model, LoraConfig(
        r=1, lora_alpha=2, task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], layers_to_transform=[1], trainable_token_indices=tokens))
    model.peft_config["default"].base_model_name_or_path = os.path.basename(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn_like(parameter))
            if "trainable_tokens_delta" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.eval()
    longer = torch.randint(5, 4000, (24,)).tolist()
    longer[3], longer[10] = short[1], short[1]
    ids = torch.tensor([short + [0] * (len(longer) - len(short)), longer])
    mask = torch.ones_like(ids)
    mask[0, len(short):] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100

    def loss_of():
        logits = model(input_ids=ids, attention_mask=mask).logits
        return logits, torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    model.save_pretrained(os.path.join(folder, "adapter_nonzero"))
    os.remove(os.path.join(folder, "adapter_nonzero/README.md"))
    logits, loss = loss_of()
    loss.backward()
    tensors = {"input_ids": ids.int(), "labels": labels.int(), "attention_mask": mask.int(),
               "logits0": logits[0, :len(short)].detach().clone(), "loss": loss.detach().reshape(1)}
    trained = {name.replace(".default", ""): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in trained.items():
        tensors["grad." + name] = parameter.grad.clone()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.1)
    losses = []
    for step in range(1, 4):
        optimizer.zero_grad()
        loss = loss_of()[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        for name, parameter in trained.items():
            if "trainable_tokens_delta" in name:
                tensors[f"step{step}.{name}"] = parameter.detach().clone()
    tensors["losses"] = torch.stack(losses)
    save_file(tensors, os.path.join(folder, "golden.safetensors"))


# Of the rows' tokens one is read and predicted, one only predicted, and one neither.
make("tied", "models/tiny-qwen3", [3020, 7, 901], [17, 3020, 901])
make("untied", "tests/golden/llama/model", {"embed_tokens": [302, 7], "lm_head": [91, 302, 5]}, [17, 302, 91])
