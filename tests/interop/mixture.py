"""A small mixture of experts for the scripts of this folder."""
import json
import shutil

import numpy as np
from interop import ROOT
from safetensors.numpy import save_file

TINY = ROOT / "models/tiny-qwen3"
CONFIG = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "float32", "hidden_act": "silu", "attention_bias": False,
          "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 192,
          "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True, "decoder_sparse_step": 1,
          "mlp_only_layers": [], "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True}
RANK = 4


def write_mixture(folder):
    """A random Qwen3-MoE with the shipped tokenizer and a random adapter of all its projections; returns their folders."""
    model, adapter = folder / "mixture-model", folder / "mixture-adapter"
    model.mkdir()
    adapter.mkdir()
    rng = np.random.default_rng(5)
    shipped = json.loads((TINY / "config.json").read_text())
    config = CONFIG | {key: shipped[key] for key in ("vocab_size", "eos_token_id")}
    hidden, heads, kv, mlp = config["hidden_size"], config["num_attention_heads"] * 64, config["num_key_value_heads"] * 64, config["moe_intermediate_size"]
    attention = {"q_proj": (heads, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, heads)}
    experts = {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden, "self_attn.q_norm": 64, "self_attn.k_norm": 64}
    random = lambda *shape, scale=0.1: (rng.standard_normal(shape) * scale).astype(np.float32)
    weights = {"model.embed_tokens.weight": random(config["vocab_size"], hidden), "model.norm.weight": 1 + random(hidden)}
    pairs = {}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        weights.update({f"{place}{name}.weight": 1 + random(size) for name, size in norms.items()})
        weights[place + "mlp.gate.weight"] = random(config["num_experts"], hidden, scale=0.5)
        modules = {f"self_attn.{name}": shape for name, shape in attention.items()}
        modules.update({f"mlp.experts.{i}.{name}": shape for i in range(config["num_experts"]) for name, shape in experts.items()})
        for name, (rows, columns) in modules.items():
            weights[f"{place}{name}.weight"] = random(rows, columns)
            pairs[f"base_model.model.{place}{name}.lora_A.weight"] = random(RANK, columns)
            pairs[f"base_model.model.{place}{name}.lora_B.weight"] = random(rows, RANK)
    (model / "config.json").write_text(json.dumps(config))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, model)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model), "r": RANK,
                                                             "lora_alpha": 2 * RANK, "target_modules": [*attention, *experts]}))
    save_file(pairs, adapter / "adapter_model.safetensors")
    return model, adapter
