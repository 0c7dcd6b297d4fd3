#!/usr/bin/env python3
"""suite.py NIBBLE [NAME ...] --node FOLDER|skip:WHY: runs the scripts of this folder, all or those named, and says what each found.

Every script shows on its own that it notices what was spoiled; of merge.py, which compares one folder, a wrong one is made here. The last
line counts them. Ends with 1 where one failed.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import time

from interop import ROOT, scratch

HERE = pathlib.Path(__file__).resolve().parent
TINY, GOLDEN = ROOT / "models/tiny-qwen3", ROOT / "tests/golden/tiny"


class Suite:
    def __init__(self, nibble, node, folder):
        self.nibble, self.node, self.folder = nibble, node, folder

    def script(self, name, *arguments):
        return subprocess.run([sys.executable, str(HERE / name), *map(str, arguments)], capture_output=True, text=True,
                              env=os.environ | {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"})

    def tokenizer_lines(self):
        return self.script("tokenizer_lines.py", self.nibble)

    def chat_templates(self):
        return self.script("chat_templates.py", self.nibble)

    def weights_in(self):
        return self.script("weights_in.py", self.nibble)

    def safetensors_files(self):
        return self.script("safetensors_files.py", self.nibble)

    def peft_adapters(self):
        return self.script("peft_adapters.py", self.nibble)

    def gguf_files(self):
        return self.script("gguf_files.py", self.nibble, TINY, "--adapter", GOLDEN / "adapter_nonzero")

    def merge(self):
        merge = [self.nibble, "merge", "--model", TINY, "--onto", "nf4", "--dtype", "f32", "--output"]
        right, wrong = self.folder / "right", self.folder / "wrong"
        for command in ([*merge, right, "--adapter", GOLDEN / "adapter_nonzero"], [*merge, wrong]):
            made = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if made.returncode:
                return made
        golden = ["--golden", GOLDEN / "golden.safetensors"]
        spoiled = self.script("merge.py", wrong, *golden)
        if spoiled.returncode != 1 or "differs by" not in spoiled.stdout:
            spoiled.returncode, spoiled.stderr = 1, spoiled.stderr + "A folder without the adapter was not noticed."
            return spoiled
        return self.script("merge.py", right, *golden)

    def llama_cpp(self):
        return self.script("llama_cpp.py", self.nibble, TINY, GOLDEN / "adapter_nonzero", "--node", self.node)

    def compare_table(self):
        return self.script("compare_table.py", self.nibble)


NAMES = ["tokenizer_lines", "chat_templates", "weights_in", "safetensors_files", "peft_adapters", "gguf_files", "merge", "compare_table", "llama_cpp"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", type=pathlib.Path)
    parser.add_argument("--node", required=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    passed = failed = skipped = 0
    with scratch() as folder:
        suite = Suite(options.nibble, options.node, folder)
        for name in options.names or NAMES:
            if name == "llama_cpp" and options.node.startswith("skip:"):
                print(f"SKIPPED {name}: {options.node.removeprefix('skip:')}", flush=True)
                skipped += 1
                continue
            begin = time.monotonic()
            done = getattr(suite, name)()
            good = done.returncode == 0
            passed, failed = passed + good, failed + (not good)
            print(f"{'ok' if good else 'FAILED'} {name} ({time.monotonic() - begin:.0f} s)", flush=True)
            for line in (done.stdout if good else done.stdout + done.stderr).strip().splitlines()[-20:]:
                print(f"    {line}", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
