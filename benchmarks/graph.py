"""The graph of a pass against the reference's: ``python -m benchmarks.graph`` rewrites graph.md.

``make bench-reference`` installs the reference. Contestants take turns in processes of their own.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.graph_models import CASES, TIMED

ROOT = Path(__file__).parent.parent
TURNS = 2
REFERENCES = ("2.15.0", "2.36.1")
Found = dict[str, Any]


def turn(which: str, packages: Path | None = None) -> Found:
    """What one contestant says in a process of its own."""
    path = os.pathsep.join(map(str, (ROOT, packages) if packages else (ROOT,)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.contestants.graph", which],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def turns() -> list[Found]:
    """All contestants, several times in turn; the least of each figure counts."""
    contestants = [("fastrec", None)]
    contestants += [("torchlens", ROOT / ".benchmarks" / f"torchlens-{version}") for version in REFERENCES]
    rounds = [[turn(*contestant) for contestant in contestants] for _ in range(TURNS)]
    merged = rounds[0]
    for later in rounds[1:]:
        for best, found in zip(merged, later, strict=True):
            for case, seconds in found["seconds"].items():
                for job, value in seconds.items():
                    best["seconds"][case][job] = min(best["seconds"][case][job], value)
    return merged


def times(found: list[Found]) -> Iterator[str]:
    """The table of times."""
    yield "| | model | bare pass | full log | of bare | metadata only | of bare | fastrec is faster by |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    own = found[0]["seconds"]
    for case in TIMED:
        for contestant in found:
            seconds = contestant["seconds"][case]
            bare, full, metadata = seconds["bare"], seconds["full"], seconds.get("metadata")
            cells = [contestant["name"], CASES[case]().title, _ms(bare), _ms(full), f"{full / bare:.1f}"]
            cells += [_ms(metadata), f"{metadata / bare:.1f}"] if metadata else ["", ""]
            yield "| " + " | ".join([*cells, f"{full / own[case]['full']:.1f}"]) + " |"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def agreement(own: Found, reference: Found) -> Iterator[str]:
    """The table of agreement: the same operations in the same order, with the same parents."""
    yield f"### With {reference['name']}"
    yield ""
    yield "| model | values | agree | differences |"
    yield "|---|---:|---|---|"
    for case, ours in own["operations"].items():
        theirs = reference["operations"][case]
        differences = list(_differences(ours, theirs))
        title = CASES[case]().title
        yield f"| {title} | {len(ours)} | {'no' if differences else 'yes'} | {'; '.join(differences[:3])} |"
    yield ""


def _differences(ours: list[Found], theirs: list[Found]) -> Iterator[str]:
    if len(ours) != len(theirs):
        yield f"{len(ours)} values here, {len(theirs)} there"
        return
    for a, b in zip(ours, theirs, strict=True):
        if a["type"] != b["type"]:
            yield f"`{a['label']}` is `{b['label']}` there"
        elif a["parents"] != b["parents"]:
            names = [", ".join(f"`{ours[p]['label']}`" for p in found) for found in (a["parents"], b["parents"])]
            yield f"`{a['label']}` has parents {names[0]} here, {names[1]} there"


def page(found: list[Found]) -> str:
    """The whole page."""
    growth = found[0]["growth"]
    many = ", ".join(f"{int(n):,} in {s:.2f} s" for n, s in growth["seconds"].items())
    return "\n".join(
        [
            "# The graph of a forward pass, against the reference",
            "",
            f"Made by `python -m benchmarks.graph` with torch {torch.__version__}, Python {platform.python_version()}, "
            "one thread, random weights, `torch.no_grad()`. CPU time, a low percentile of 9 passes, the least of "
            f"{TURNS} turns in processes of their own.",
            "",
            *times(found),
            "",
            f"Additions of a scalar, logged and printed: {many}. Beside the saved tensors an operation takes "
            f"{growth['bytes']:.0f} bytes.",
            "",
            "## Agreement",
            "",
            "The same values in the same order, from the same parents; the words for functions are made equal first.",
            "",
            *(line for reference in found[1:] for line in agreement(found[0], reference)),
            "Who is right where they differ: see [the graph](../docs/graph.md#where-the-reference-differs).",
            "",
        ]
    )


def main() -> None:
    (ROOT / "benchmarks" / "graph.md").write_text(page(turns()))


if __name__ == "__main__":
    main()
