#!/usr/bin/env python3
"""Makes a golden file for `nibble verify` with transformers and peft, in float32.

make_golden.py --model D --adapter D --data F --rows N --output golden.safetensors

The seven projections of each layer are quantised to NF4 and back first (blocks of 64 of the flattened matrix, f32 absmax,
the nearest code, a tie going to the lower one), as bitsandbytes does without double quantisation, and those of experts each by
itself; all else stays as stored.
Rows are chats of the messages form; labels are each assistant turn's content and end token, found by rendering the chat up to
the turn, so the template must not rewrite earlier turns.
"""

import argparse
import json

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

CODES = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def through_nf4(weight):
    blocks = weight.float().reshape(-1, 64)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    scaled = blocks * (1.0 / absmax.clamp(min=1e-38))
    codes = torch.bucketize(scaled, (CODES[:-1] + CODES[1:]) / 2)
    return (CODES[codes] * absmax).reshape(weight.shape)


def read_rows(path, count, tokenizer):
    rows = []
    with open(path, encoding="utf-8") as lines:
        for line in list(lines)[:count]:
            messages = json.loads(line)["messages"]
            ids, labels = [], []
            for i, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                head = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
                whole = tokenizer.apply_chat_template(messages[:i + 1], tokenize=False)
                known = len(ids)
                prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
                ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
                labels += [-100] * (len(prompt) - known) + ids[len(prompt):]
                end = len(ids) - 1 - ids[::-1].index(tokenizer.eos_token_id)
                labels[end + 1:] = [-100] * (len(ids) - end - 1)
            rows.append((ids, labels))
    return rows


def pad(rows, what, value, width):
    return torch.tensor([row[what] + [value] * (width - len(row[what])) for row in rows], dtype=torch.int32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.rsplit(".", 1)[-1] in PROJECTIONS:
                module.weight.copy_(through_nf4(module.weight))
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3 and name.rsplit(".", 1)[-1] in ("gate_up_proj", "down_proj"):
                for expert in parameter:  # whole rows of blocks, so that gate and up are as if by themselves
                    expert.copy_(through_nf4(expert))
    model = PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    model.eval()

    rows = read_rows(args.data, args.rows, tokenizer)
    width = max(len(ids) for ids, _ in rows)
    ids, labels = pad(rows, 0, 0, width), pad(rows, 1, -100, width)
    mask = torch.tensor([[1] * len(row[0]) + [0] * (width - len(row[0])) for row in rows], dtype=torch.int32)
    logits = model(input_ids=ids.long(), attention_mask=mask.long()).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().long(),
                                             ignore_index=-100)
    loss.backward()
    tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask, "logits0": logits[0].detach().clone(),
               "loss": loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors["grad." + name.replace(".default", "")] = parameter.grad.clone()
    save_file(tensors, args.output)
    print(f"loss {loss.item():.7f}; {len(tensors) - 5} gradients in {args.output}")


if __name__ == "__main__":
    main()
