#!/usr/bin/env python3
"""compare_table.py NIBBLE: the table of bench/compare keeps nibble's two ways apart, as the JSON of `nibble bench step` names them."""
import json
import subprocess
import sys

from interop import ROOT, expect, expect_red, run, scratch

TINY = ROOT / "models/tiny-qwen3"


def check(folder):
    done = subprocess.run([sys.executable, str(ROOT / "bench/compare/table.py"), str(folder)], capture_output=True, text=True)
    expect(done.returncode == 0, done.stderr)
    lines = (folder / "table.md").read_text().splitlines()
    heads = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| batch")]
    expect(heads == [["batch x length", "nibble", "nibble, checkpointing", "nibble / best other"]], f"columns {heads}")
    row = next(line for line in lines if line.startswith("| 1 x 16"))
    for way in ("none", "full"):
        report = json.loads((folder / f"nibble-{way}.json").read_text())
        rate = f"{report['rows'][0]['tokens_per_second']:,.0f}"
        expect(rate in row, f"{rate} of {way} is missing in {row}")


def main():
    nibble = sys.argv[1]
    with scratch() as folder:
        for way, options in {"none": [], "full": ["--gradient-checkpointing"]}.items():
            run(nibble, "bench", "step", "--model", TINY, "--batch", 1, "--length", 16, "--steps", 1, *options, "--json", folder / f"nibble-{way}.json")
        check(folder)
        file = folder / "nibble-full.json"
        report = json.loads(file.read_text())
        report["settings"]["gradient_checkpointing"] = "off"
        file.write_text(json.dumps(report))
        expect_red("both ways under one name", lambda: check(folder))
    print("nibble's two ways stand in columns of their own")


if __name__ == "__main__":
    main()
