#!/usr/bin/env python3
"""Measures training steps of one peer of nibble, and writes what it found as JSON.

    peer.py model FOLDER                                        makes a random Qwen3-4B (8 GB of bf16)
    peer.py measure NAME FOLDER OUT.json BATCHxLENGTH ...       NAME: peft, bnb or unsloth
        [--checkpointing none|full|unsloth] [--steps 4] [--warm-up 3]

peft is LoRA on bf16 weights, bnb is LoRA on bitsandbytes' NF4 with double quantisation, unsloth is Unsloth's own form of
the latter. Rank 16, alpha 32, all seven projections, random ids, a label on every token, fused AdamW, bf16 autocast. A
step is forward, backward and update, and ends when the GPU has done it. A peer whose packages are missing writes why and
exits with 0; a shape that does not fit into memory has a row that says so.
"""
import argparse
import importlib.metadata
import json
import pathlib
import statistics
import sys
import time

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = 151936
PACKAGES = {
    "peft": ["torch", "transformers", "peft"],
    "bnb": ["torch", "transformers", "peft", "accelerate", "bitsandbytes"],
    "unsloth": ["unsloth", "unsloth_zoo", "torch", "transformers", "peft", "bitsandbytes"],
}
QWEN3_4B = dict(vocab_size=VOCABULARY, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
                num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
                rope_theta=1e6, tie_word_embeddings=True, rms_norm_eps=1e-6)


class LeftOut(Exception):
    """Why a peer cannot be measured here."""


def shape(text):
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) > 0 and int(length) > 1):
        raise argparse.ArgumentTypeError(f'"{text}" is no BATCHxLENGTH, such as 8x1024')
    return int(batch), int(length)


def make_model(folder):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B))
    model.save_pretrained(folder)
    # Unsloth will not load a model without a tokenizer; any serves, since the ids are made up.
    tiny = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny-qwen3"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (pathlib.Path(folder) / name).write_bytes((tiny / name).read_bytes())


def versions_of(peer):
    """The versions of a peer's packages; LeftOut where one is missing or there is no GPU for them."""
    versions = {}
    for package in PACKAGES[peer]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise LeftOut(f"the Python package {package} is not installed") from None
    import torch

    if not torch.cuda.is_available():
        raise LeftOut("torch finds no CUDA GPU")
    return versions


def with_adapters(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))


def load_peft(folder, checkpointing):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": 0})
    if checkpointing == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return with_adapters(model)


def load_bnb(folder, checkpointing):
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.bfloat16, device_map={"": 0})
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing == "full",
                                            gradient_checkpointing_kwargs={"use_reentrant": False})
    return with_adapters(model)


def load_unsloth(folder, checkpointing, longest):
    from unsloth import FastLanguageModel  # before torch and transformers, which it changes
    import torch

    model, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=longest, load_in_4bit=True, dtype=torch.bfloat16)
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, target_modules=PROJECTIONS, lora_dropout=0, bias="none",
        use_gradient_checkpointing={"none": False, "full": True, "unsloth": "unsloth"}[checkpointing])
    FastLanguageModel.for_training(model)
    return model


def load(peer, folder, checkpointing, longest):
    if peer == "unsloth":
        return load_unsloth(folder, checkpointing, longest)
    model = (load_bnb if peer == "bnb" else load_peft)(folder, checkpointing)
    model.config.use_cache = False
    return model


def time_steps(model, batch, length, steps, warm_up):
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator(device="cuda").manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (batch, length), device="cuda", generator=generator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    seconds = []
    for i in range(warm_up + steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        if i >= warm_up:
            seconds.append(time.perf_counter() - start)
    mean = statistics.fmean(seconds)
    return {"tokens_per_second": batch * length / mean,
            "seconds": {"mean": mean, "min": min(seconds), "max": max(seconds), "repeats": steps},
            "memory_bytes": torch.cuda.max_memory_reserved(), "loss": loss.item()}


def measure(arguments):
    report = {"tool": arguments.name, "checkpointing": arguments.checkpointing, "rows": []}
    try:
        report["versions"] = versions_of(arguments.name)
        if arguments.name == "unsloth":
            import unsloth  # noqa: F401
        import torch

        report["device"] = torch.cuda.get_device_name(0)
        model = load(arguments.name, arguments.folder, arguments.checkpointing, max(s[1] for s in arguments.shapes))
    except LeftOut as error:
        report["left_out"] = str(error)
        return report
    except Exception as error:  # packages that do not fit each other or the card fail in many ways
        report["left_out"] = f"it does not load here: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        return report
    model.train()
    for batch, length in arguments.shapes:
        row = {"shape": f"{batch}x{length}", "batch": batch, "length": length}
        try:
            row.update(time_steps(model, batch, length, arguments.steps, arguments.warm_up))
        except torch.cuda.OutOfMemoryError:
            row["failure"] = "out of memory"
            for parameter in model.parameters():
                parameter.grad = None
        except RuntimeError as error:
            row["failure"] = str(error).splitlines()[0][:100]
        report["rows"].append(row)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("model").add_argument("folder")
    one = verbs.add_parser("measure")
    one.add_argument("name", choices=sorted(PACKAGES))
    one.add_argument("folder")
    one.add_argument("out")
    one.add_argument("shapes", nargs="+", type=shape)
    one.add_argument("--checkpointing", choices=["none", "full", "unsloth"], default="none")
    one.add_argument("--steps", type=int, default=4)
    one.add_argument("--warm-up", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.verb == "model":
        return make_model(arguments.folder)
    if arguments.checkpointing == "unsloth" and arguments.name != "unsloth":
        parser.error("--checkpointing unsloth is Unsloth's own")
    if arguments.steps < 1 or arguments.warm_up < 0:
        parser.error("--steps must be at least 1 and --warm-up at least 0")
    report = measure(arguments)
    pathlib.Path(arguments.out).write_text(json.dumps(report, indent=2) + "\n")
    if "left_out" in report:
        print(f"{arguments.name}: left out, {report['left_out']}", file=sys.stderr)
    for row in report["rows"]:
        said = row.get("failure") or f"{row['tokens_per_second']:.0f} tokens/s, {row['memory_bytes'] / 2**30:.1f} GiB"
        print(f"{arguments.name}, checkpointing {arguments.checkpointing}, {row['shape']}: {said}", file=sys.stderr)


if __name__ == "__main__":
    main()
