"""Puts the figures of results.json into README.md and docs/how-it-works.md: ``python -m benchmarks.figures``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"

MODELS = {
    "mlp": "actor-critic MLP",
    "nature": "NatureCNN",
    "resnet": "ResNet-18",
    "gpt2": "small GPT-2",
}
CONTESTANTS = {
    "hooks": "forward hooks by hand",
    "module": "fastrec, `keep_module`",
    "op": "fastrec, `keep_op`",
    "lambda": "fastrec, a lambda asked at each op",
    "nothing": "fastrec, matching nothing",
    "static": 'fastrec, `keep_op`, `engine="static"`',
}


def overhead(results: Mapping[str, Any]) -> Iterator[str]:
    """How long a recorded pass takes, as a ratio to the bare one."""
    runs = {run["contest"]: run for run in results["contests"] if run["popped"]}
    ratios = {(row["contestant"], name): row["ratio"] for name, run in runs.items() for row in run["ratios"]}
    yield "| time of a pass, bare model = 1 | " + " | ".join(MODELS.values()) + " |"
    yield "|---|" + "---:|" * len(MODELS)
    for key, told in CONTESTANTS.items():
        yield f"| {told} | " + " | ".join(f"{ratios[key, name]:.2f}" for name in MODELS) + " |"
    references = {(run["reference"], run["contest"]): run["ratio"] for run in results["references"]}
    for reference in dict.fromkeys(name for name, _ in references):
        cells = (f"{references[reference, name]:.1f}" if (reference, name) in references else "" for name in MODELS)
        yield f"| {reference} | " + " | ".join(cells) + " |"
    bare = ", ".join(f"{runs[name]['bare_us'] / 1000:,.2f} ms" for name in MODELS)
    noise = ", ".join("{:.2f}-{:.2f}".format(*runs[name]["spread"]) for name in MODELS)
    yield ""
    yield (
        "Kept is the output of each tanh, relu or layernorm of each pass. A bare pass takes "
        f"{bare}; bare against bare is {noise}. `{results['command']}` on {results['machine']}. "
        "All rows, and what they mean: [benchmarks](benchmarks/results.md)."
    )


def costs(results: Mapping[str, Any]) -> Iterator[str]:
    """What one event costs."""
    yield "| Per event | ns |"
    yield "|---|---:|"
    for name, ns in results["costs_ns"].items():
        yield f"| {name} | {ns:,.0f} |"


PLACES = {"README.md": ("overhead", overhead), "docs/how-it-works.md": ("costs", costs)}
"""By document: the name of the comments that the figures stand between, and what makes them."""


def filled(document: str, results: Mapping[str, Any]) -> str:
    """A document with the figures of these results."""
    mark, rows = PLACES[document]
    text = (ROOT / document).read_text()
    before, _, rest = text.partition(f"<!-- {mark} -->\n")
    _, found, after = rest.partition(f"<!-- /{mark} -->")
    if not found:
        raise ValueError(f"{document} has no comments <!-- {mark} --> and <!-- /{mark} --> around its figures")
    lines = "\n".join(rows(results))
    return f"{before}<!-- {mark} -->\n{lines}\n<!-- /{mark} -->{after}"


def main() -> None:
    results = json.loads(RESULTS.read_text())
    for document in PLACES:
        (ROOT / document).write_text(filled(document, results))


if __name__ == "__main__":
    main()
