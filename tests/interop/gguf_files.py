#!/usr/bin/env python3
"""Holds nibble's GGUF files against the Python package `gguf`, in both directions.

    gguf_files.py NIBBLE MODEL [--adapter DIR] [--seed N] [--transformers]

    out       `nibble merge --format gguf` in every type against the merged safetensors, quantised by the package
    metadata  tokens, merges and sizes against tokenizer.json and config.json
    in        what the package writes, in one file and in three, its matrices random blocks of every type, against the package's values
    adapter   `nibble export --for llama.cpp` against the PEFT folder
    mixture   all of that with a mixture of experts too, and `nibble verify` on the golden one by way of a GGUF file
    logits    with --transformers, what transformers computes of the f32 file and of the merged folder (it knows neither Llama 3's RoPE in
              GGUF files nor heads of Qwen3 of another size than 128)
    red       out, in and adapter once more with something changed, which has to fail

Needs gguf, safetensors and numpy, with --transformers also torch, transformers and accelerate, so it is no part of ./check. MODEL is
a folder with a byte-level tokenizer. Ends with 1 where anything differs.
"""
import argparse
import json
import pathlib
import re
import shutil

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants
from interop import ROOT, expect, expect_red, finish, run, scratch
from mixture import write_mixture
from safetensors import safe_open

PROJECTIONS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
               "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
LAYER = dict(PROJECTIONS, **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
                             "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp"})
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
EXPERT = re.compile(r"(?<=\.experts)\.(\d+)(?=\.)")
ARCHITECTURES = {"mistral": "llama", "qwen3_moe": "qwen3moe"}
GOLDEN = ROOT / "tests/golden/qwen3-moe"
# Where scales of 16 bits lie in a block: random bits there could be NaN.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}


def load_folder(folder):
    """All tensors of a folder that nibble wrote with --dtype f32."""
    values = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            values.update({name: file.get_tensor(name) for name in file.keys()})
    return values


def gguf_name(name):
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    stacked = "_exps" if ".experts." in module else ""
    return f"blk.{layer}.{LAYER[EXPERT.sub('', module).replace('.experts', '')]}{stacked}.{kind}"


def with_stacks(values):
    """The same, all experts' matrices of a kind as one, under the name of the first."""
    result, stacks = {}, {}
    for name, value in values.items():
        expert = EXPERT.search(name)
        if expert:
            stacks.setdefault(EXPERT.sub(".0", name), {})[int(expert[1])] = value
        else:
            result[name] = value
    return result | {name: np.stack([each[i] for i in range(len(each))]) for name, each in stacks.items()}


def in_gguf_order(config, name, values):
    """As llama.cpp's converter permutes queries and keys of llama."""
    if config["model_type"] not in ("llama", "mistral"):
        return values
    heads = config["num_attention_heads"] if "q_proj" in name else config["num_key_value_heads"] if "k_proj" in name else 0
    if heads == 0:
        return values
    return values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def read_gguf(path):
    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


def type_of(name, values, wanted):
    if values.ndim == 1 or name.endswith("mlp.gate.weight"):
        return Type.F32
    if wanted == "q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight"):
        return Type.Q8_0
    return Type[wanted.upper()]


def llama3_divisors(rope, head_dim):
    """What each frequency is divided by, as llama.cpp's converter writes it."""
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    original, low, high, factor = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelengths < original / high, 1, np.where(wavelengths > original / low, factor, between))


def compare_model(path, folder, config, wanted):
    _, tensors = read_gguf(path)
    expected = with_stacks(load_folder(folder))
    names = {gguf_name(name) for name in expected}
    expect(names | {"rope_freqs.weight"} >= set(tensors) >= names, f"{path}: tensors {sorted(names ^ set(tensors))} differ")
    for name, values in expected.items():
        tensor, kind = tensors[gguf_name(name)], type_of(name, values, wanted)
        expect(tensor.tensor_type == kind, f"{name} is {tensor.tensor_type.name}, not {kind.name}")
        ours = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
        theirs = np.ascontiguousarray(quants.quantize(in_gguf_order(config, name, values), kind)).view(np.uint8).reshape(-1)
        expect(np.array_equal(ours, theirs), f"{name} in {wanted} differs")
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        expect("rope_freqs.weight" in tensors, "rope_freqs.weight is missing")
        expect(np.allclose(tensors["rope_freqs.weight"].data, llama3_divisors(rope, config["head_dim"]), rtol=1e-6, atol=0), "rope_freqs.weight differs")


def compare_metadata(path, folder, config):
    reader, _ = read_gguf(path)
    value = lambda key: reader.get_field(key).contents()
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    expect(value("general.architecture") == arch, "architecture")
    experts = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "moe_intermediate_size"}
    sizes = {"block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
             "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
             "context_length": "max_position_embeddings"}
    for key, name in (sizes | experts if arch == "qwen3moe" else sizes).items():
        expect(value(f"{arch}.{key}") == config[name], key)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    expect(len(tokens) == len(types) == config["vocab_size"], "number of tokens")
    for token, i in tokenizer["model"]["vocab"].items():
        expect(tokens[i] == token, f"token {i}")
    for added in tokenizer["added_tokens"]:
        expect(tokens[added["id"]] == added["content"] and types[added["id"]] == (3 if added["special"] else 4), f"added token {added['content']}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    expect(value("tokenizer.ggml.merges") == merges, "merges")
    template = folder / "chat_template.jinja"
    if template.exists():
        expect(value("tokenizer.chat_template") == template.read_text(), "chat template")


def random_blocks(kind, count, rng):
    if kind in (Type.F32, Type.F16, Type.BF16):
        return quants.quantize(rng.standard_normal(count * 32).astype(np.float32), kind).view(np.uint8).reshape(-1)
    blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in HALVES[kind.name]:
        blocks[:, at:at + 2] = (rng.standard_normal(count) * 0.1).astype(np.float16).view(np.uint8).reshape(count, 2)
    return blocks


def write_random_model(path, arch, rng, parts):
    """One layer for each type, with llama's heads, in so many files, and what the package makes of its matrices under Hugging Face's names."""
    kinds = [Type[name] for name in ["F32", "F16", "BF16", *HALVES]]
    hidden, heads, kv_heads, mlp, experts = 512, 8, 2, 768, 3
    tensors = 2 + (7 + {"llama": 2, "qwen3": 4, "qwen3moe": 5}[arch]) * len(kinds)
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=-(-tensors // parts) if parts > 1 else 0)
    writer.add_block_count(len(kinds))
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    if arch == "qwen3moe":
        mlp = 256
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(mlp)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b"])
    expected = {}
    dims = {"attn_q": (hidden, hidden), "attn_k": (hidden * kv_heads // heads, hidden), "attn_v": (hidden * kv_heads // heads, hidden),
            "attn_output": (hidden, hidden), "ffn_gate": (mlp, hidden), "ffn_up": (mlp, hidden), "ffn_down": (hidden, mlp)}
    theirs = {ours: module for module, ours in PROJECTIONS.items()}

    def add(name, shape, kind, hf_name):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape)) // (32 if kind in (Type.F32, Type.F16, Type.BF16) else block)
        data = np.ascontiguousarray(random_blocks(kind, count, rng)).reshape(*shape[:-1], -1)
        writer.add_tensor(name, data, raw_dtype=kind)
        values = quants.dequantize(data, kind).reshape(shape)
        rows = shape[0] // {"attn_q": heads, "attn_k": kv_heads}.get(name.split(".")[-2], shape[0])
        if arch == "llama" and rows > 1:  # back into Hugging Face's order
            values = values.reshape(-1, rows // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        if len(shape) == 3:
            expected.update({hf_name.replace(".mlp.", f".mlp.experts.{i}."): each for i, each in enumerate(values)})
        else:
            expected[hf_name] = values

    add("token_embd.weight", (3, hidden), Type.Q6_K, "model.embed_tokens.weight")
    norms = {"output_norm.weight": hidden}
    for i, kind in enumerate(kinds):
        for part, shape in dims.items():
            stacked = arch == "qwen3moe" and part.startswith("ffn")
            add(f"blk.{i}.{part}{'_exps' if stacked else ''}.weight", (experts, *shape) if stacked else shape, kind,
                f"model.layers.{i}.{theirs[part]}.weight")
        if arch == "qwen3moe":
            add(f"blk.{i}.ffn_gate_inp.weight", (experts, hidden), Type.F32, f"model.layers.{i}.mlp.gate.weight")
        norms.update({f"blk.{i}.attn_norm.weight": hidden, f"blk.{i}.ffn_norm.weight": hidden})
        if arch != "llama":
            norms.update({f"blk.{i}.attn_q_norm.weight": hidden // heads, f"blk.{i}.attn_k_norm.weight": hidden // heads})
    for name, size in norms.items():
        writer.add_tensor(name, np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def compare_values(folder, expected):
    found = load_folder(folder)
    for name, values in expected.items():
        expect(np.array_equal(found[name].view(np.uint32), values.view(np.uint32)), f"{name}, read from GGUF, differs")


def compare_adapter(path, adapter, config):
    reader, tensors = read_gguf(path)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    rank, alpha = settings["r"], settings["lora_alpha"]
    scaling = alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank
    value = lambda key: reader.get_field(key).contents()
    expect(value("general.type") == "adapter" and value("adapter.type") == "lora", "type of the adapter")
    expect(abs(value("adapter.lora.alpha") / rank - scaling) < 1e-6 * scaling, "scaling")
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        expected = with_stacks({name: file.get_tensor(name).astype(np.float32) for name in file.keys()})
    expect(len(tensors) == len(expected), "number of the adapter's tensors")
    for name, values in expected.items():
        module, which = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        if which == "B":
            values = in_gguf_order(config, module, values)
        ours = tensors[f"{gguf_name(module + '.weight')}.lora_{which.lower()}"].data
        expect(np.array_equal(ours.view(np.uint32), values.view(np.uint32)), f"{name} differs")


def compare_logits(path, folder):
    import torch
    from transformers import AutoModelForCausalLM

    def logits(model):
        ids = torch.arange(5, 45).reshape(1, -1) * 37 % model.config.vocab_size
        with torch.no_grad():
            return model.eval()(ids).logits

    expected = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    found = logits(AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32))
    expect(torch.equal(found, expected), f"logits differ by {(found - expected).abs().max().item()}")


def with_changed_byte(path, to, at=-64):
    """A byte of the last tensor's data."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    to.write_bytes(data)
    return to


def check_out(options, model, adapter, folder):
    """The model in every type, what the file says of it, and its adapter."""
    config = json.loads((model / "config.json").read_text())
    adapted = ["--adapter", adapter] if adapter else []
    merged = folder / "merged"
    run(options.nibble, "merge", "--model", model, *adapted, "--output", merged, "--dtype", "f32")
    for wanted in ("f32", "f16", "bf16", "q8_0", "q4_0"):
        path = folder / f"{wanted}.gguf"
        run(options.nibble, "merge", "--model", model, *adapted, "--output", path, "--format", "gguf", "--dtype", wanted)
        compare_model(path, merged, config, wanted)
        expect_red("out", lambda: compare_model(with_changed_byte(path, folder / "red.gguf"), merged, config, wanted))
    compare_metadata(folder / "f32.gguf", model, config)
    if options.transformers:
        compare_logits(folder / "f32.gguf", merged)
    if adapter:
        path = folder / "adapter.gguf"
        run(options.nibble, "export", "--for", "llama.cpp", "--model", model, "--adapter", adapter, "--output", path)
        compare_adapter(path, adapter, config)
        expect_red("adapter", lambda: compare_adapter(with_changed_byte(path, folder / "red.gguf"), adapter, config))


def check_in(options, folder):
    for arch, parts in (("llama", 1), ("qwen3", 1), ("qwen3", 3), ("qwen3moe", 1), ("qwen3moe", 3)):
        source, output = folder / f"random-{arch}-{parts}", folder / f"{arch}-{parts}"
        source.mkdir()
        expected = write_random_model(source / "random.gguf", arch, np.random.default_rng(options.seed), parts)
        run(options.nibble, "merge", "--model", source, "--output", output, "--dtype", "f32")
        compare_values(output, expected)
        name = "model.layers.7.mlp.experts.1.up_proj.weight" if arch == "qwen3moe" else "model.layers.7.self_attn.q_proj.weight"
        expect_red("in", lambda: compare_values(output, {name: np.roll(expected[name], 1, axis=0)}))
        expect(len(list(source.iterdir())) == parts, f"the package made {len(list(source.iterdir()))} files, not {parts}")


def check_golden(options, folder):
    """The golden mixture of experts by way of a file; its vocabulary has room for few tokens."""
    shutil.copytree(GOLDEN / "model", folder / "golden")
    tokenizer = json.loads((ROOT / "models/tiny-qwen3/tokenizer.json").read_text())
    tokenizer["model"].update(vocab={"a": 0, "b": 1, "ab": 2}, merges=["a b"])
    (folder / "golden/tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": []}))
    path = folder / "golden.gguf"
    run(options.nibble, "merge", "--model", folder / "golden", "--output", path, "--format", "gguf")
    verify = lambda file: run(options.nibble, "verify", "--model", file, "--adapter", GOLDEN / "adapter_nonzero", "--golden", GOLDEN / "golden.safetensors")
    verify(path)
    expect_red("golden", lambda: verify(with_changed_byte(path, folder / "red.gguf", -1)))  # the exponent of the final norm's last weight


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--adapter", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transformers", action="store_true")
    options = parser.parse_args()
    with scratch() as folder:
        for name in ("given", "mixture"):
            (folder / name).mkdir()
        check_out(options, options.model, options.adapter, folder / "given")
        check_out(options, *write_mixture(folder), folder / "mixture")
        check_in(options, folder)
        check_golden(options, folder)
    print("All files agree.")


if __name__ == "__main__":
    finish(main)
