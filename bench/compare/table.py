#!/usr/bin/env python3
"""Joins the JSON files of one comparison: table.py FOLDER writes FOLDER/table.md and FOLDER/comparison.json.

A cell is tokens a second and, in brackets, the most GiB of GPU memory. The files are those of peer.py and of `nibble bench
step --json`; what was left out, or failed, stands below the table.
"""
import json
import pathlib
import sys

NAMES = {"nibble": "nibble", "peft": "PEFT, bf16 LoRA", "bnb": "PEFT + bitsandbytes NF4", "unsloth": "Unsloth NF4"}
WAYS = {"none": "", "full": ", checkpointing", "unsloth": ", its own checkpointing"}
ORDER = [(tool, way) for tool in NAMES for way in WAYS]
OUTPUTS = {"comparison.json"}


def column_of(report):
    """(tool, how activations are kept)"""
    if report.get("tool") == "nibble":
        return "nibble", "none" if report["settings"]["gradient_checkpointing"] == "off" else "full"
    return report["tool"], report["checkpointing"]


def read_reports(folder):
    reports = []
    for path in sorted(folder.glob("*.json")):
        if path.name in OUTPUTS:
            continue
        try:
            report = json.loads(path.read_text())
            column = column_of(report)
            rows = report["rows"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            sys.exit(f"table.py: {path} is no result of a measurement ({type(error).__name__}: {error})")
        if column not in ORDER:
            sys.exit(f"table.py: {path} is of {column[0]} with checkpointing {column[1]}, which are not known here")
        reports.append((column, report, rows))
    if not reports:
        sys.exit(f"table.py: there is no result in {folder}")
    return reports


def join(reports):
    """cells[shape][column] = row, and what there is to say about columns."""
    cells, notes, devices = {}, [], {}
    for column, report, rows in reports:
        name = NAMES[column[0]] + WAYS[column[1]]
        if report.get("left_out"):
            notes.append(f"{name}: left out, {report['left_out']}.")
            continue
        device = report.get("device")
        if device:
            devices.setdefault(device["name"] if isinstance(device, dict) else device, []).append(name)
        for row in rows:
            cells.setdefault((row["batch"], row["length"]), {})[column] = row
    if len(devices) > 1:
        notes.append("Measured on different devices, so not to be compared: "
                     + "; ".join(f"{device} ({', '.join(sorted(set(names)))})" for device, names in sorted(devices.items())) + ".")
    return cells, notes, sorted(devices)


def rate(row):
    return row.get("tokens_per_second", 0.0) if row else 0.0


def cell(row, best):
    if row is None:
        return "-"
    if "failure" in row:
        return row["failure"]
    text = f"{rate(row):,.0f}"
    return f"{'**' + text + '**' if best else text} ({row['memory_bytes'] / 2**30:.1f})"


def ratio(row):
    """nibble's best over the best of the others."""
    ours = max((rate(r) for c, r in row.items() if c[0] == "nibble"), default=0)
    others = max((rate(r) for c, r in row.items() if c[0] != "nibble"), default=0)
    return ours / others if ours and others else None


def markdown(cells, columns, notes, devices):
    notes = [f"- {note}" for note in notes]
    if not cells:
        return "\n".join(["Nothing was measured.", ""] + notes) + "\n"
    lines = [f"Device: {', '.join(devices) or 'unknown'}. Tokens a second, and in brackets the most GiB of GPU memory.", ""]
    lines.append("| batch x length | " + " | ".join(NAMES[t] + WAYS[w] for t, w in columns) + " | nibble / best other |")
    lines.append("| --- |" + " --- |" * (len(columns) + 1))
    for batch, length in sorted(cells, key=lambda s: (s[0] * s[1], s)):
        row = cells[(batch, length)]
        best = max(map(rate, row.values()))
        texts = [cell(row.get(c), rate(row.get(c)) == best > 0) for c in columns]
        times = ratio(row)
        lines.append(f"| {batch} x {length} | " + " | ".join(texts) + f" | {f'{times:.2f}' if times else '-'} |")
    return "\n".join(lines + ([""] + notes if notes else [])) + "\n"


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    if not folder.is_dir():
        sys.exit(f"table.py: {folder} is no folder")
    reports = read_reports(folder)
    cells, notes, devices = join(reports)
    columns = [c for c in ORDER if any(c in row for row in cells.values())]
    text = markdown(cells, columns, notes, devices)
    (folder / "table.md").write_text(text)
    joined = {"devices": devices, "notes": notes,
              "reports": [{k: v for k, v in report.items() if k != "rows"} for _, report, _ in reports],
              "rows": [{"batch": b, "length": n, "nibble_over_best_other": ratio(row),
                        "results": [{"tool": t, "checkpointing": w, **row[(t, w)]} for t, w in columns if (t, w) in row]}
                       for (b, n), row in sorted(cells.items())]}
    (folder / "comparison.json").write_text(json.dumps(joined, indent=2) + "\n")
    print(text, end="")


if __name__ == "__main__":
    main()
