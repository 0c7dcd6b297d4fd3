#!/usr/bin/env python3
"""Makes fp4/ beside it: the model with every projection, each expert's and the routers' too, in bitsandbytes' FP4, as transformers 4 saves it
(transformers 5 leaves experts in 16 bits), and golden.safetensors, what transformers makes of the restored weights with ../adapter_nonzero, in
the form of ../../README.md with the gradients of layer 0. Needs bitsandbytes, safetensors, torch and transformers.
"""
import json
import pathlib

import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE / "fp4"
PREFIX = "base_model.model."


def quantised(weights):
    """What a folder stores, and what it stands for."""
    stored, restored = {}, {}
    for name, weight in weights.items():
        restored[name] = weight.float()
        if weight.ndim != 2 or "embed_tokens" in name:
            stored[name] = weight
            continue
        codes, state = functional.quantize_4bit(weight.float(), quant_type="fp4")
        stored[name] = codes
        for suffix, tensor in state.as_dict(packed=True).items():
            stored[f"{name}.{suffix}"] = tensor
        restored[name] = functional.dequantize_4bit(codes, state)
    return stored, restored


def adapted(weights, adapter, scaling):
    """W + scaling * B A of each module that has a pair."""
    result = dict(weights)
    for name in adapter:
        if ".lora_A." in name:
            module = name.removeprefix(PREFIX).replace(".lora_A", "")
            result[module] = weights[module] + scaling * (adapter[name.replace("lora_A", "lora_B")] @ adapter[name])
    return result


def fused(weights, config):
    """Under the names of transformers 5, which has all experts of a layer in two tensors."""
    result = {name: weight for name, weight in weights.items() if ".experts." not in name}
    for layer in range(config.num_hidden_layers):
        place = f"model.layers.{layer}.mlp.experts."
        each = lambda part: torch.stack([weights[f"{place}{expert}.{part}.weight"] for expert in range(config.num_local_experts)])
        result[place + "gate_up_proj"] = torch.cat([each("gate_proj"), each("up_proj")], dim=1)
        result[place + "down_proj"] = each("down_proj")
    return result


def main():
    FOLDER.mkdir(exist_ok=True)
    stored, restored = quantised(load_file(HERE / "model/model.safetensors"))
    save_file(stored, FOLDER / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((HERE / "model/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "fp4",
                                     "bnb_4bit_use_double_quant": False, "bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": "float32"}
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    model = Qwen3MoeForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32, attn_implementation="eager").eval()
    settings = json.loads((HERE / "adapter_nonzero/adapter_config.json").read_text())
    adapter = {name: tensor.requires_grad_() for name, tensor in load_file(HERE / "adapter_nonzero/adapter_model.safetensors").items()}
    weights = fused(adapted(restored, adapter, settings["lora_alpha"] / settings["r"]), model.config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    rows = {name: tensor for name, tensor in load_file(HERE / "golden.safetensors").items() if name in ("input_ids", "labels", "attention_mask")}
    ids, labels, mask = (rows[name].long() for name in ("input_ids", "labels", "attention_mask"))
    logits = torch.func.functional_call(model, weights, kwargs={"input_ids": ids, "attention_mask": mask}).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    golden = dict(rows, logits0=logits[0].detach().clone(), loss=loss.detach().reshape(1))
    golden.update({f"grad.{name}": tensor.grad for name, tensor in adapter.items() if ".layers.0." in name})
    save_file(golden, FOLDER / "golden.safetensors")


if __name__ == "__main__":
    main()
