"""Writes results.md and results.json: ``python -m benchmarks.report .benchmarks/last.json .benchmarks/costs.json``."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import fastrec
from benchmarks.contestants import CONTESTANTS
from benchmarks.models import CASES

HERE = Path(__file__).parent
COMMAND = "make bench"
LIMITS = {
    "op": {"mlp": 1.40, "nature": 1.10, "resnet": 1.05, "gpt2": 1.15},
    "lambda": {"mlp": 2.2},
    "nothing": {"mlp": 1.30},
}
"""Ratios to the bare pass, where what was kept is popped every pass; ``module`` is measured against ``hooks``."""
AGAINST_HOOKS: Mapping[str, Mapping[str, float]] = {"module": {}, "static": {"mlp": 0.95}}
"""Contestants whose limit is a share of what hooks by hand cost, all of it where none is given."""
MOST_NOISE = 1.1
"""Bare against bare; above, nothing is said of limits."""

Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Ratio:
    """The median over the rounds; a limit is missed when it is exceeded by more than the spread of bare to bare."""

    contest: str
    contestant: str
    popped: bool
    ratio: float
    limit: float | None = None

    def cell(self, spread: float) -> str:
        if self.limit is None:
            return f"{self.ratio:.2f}"
        if spread > MOST_NOISE:
            verdict = "too noisy"
        else:
            verdict = "met" if self.ratio <= self.limit * max(spread, 1.0) else "**missed**"
        return f"{self.ratio:.2f} ({verdict}: {self.limit:.2f})"


def ratios(contest: str, popped: bool, seconds: Times) -> Iterator[Ratio]:
    """The figures of one contest, against the bare pass of the same round."""
    for key, times in seconds.items():
        if key == "bare":
            continue
        limit = LIMITS.get(key, {}).get(contest) if popped else None
        if key in AGAINST_HOOKS and popped:
            limit = AGAINST_HOOKS[key].get(contest, 1.0) * _ratio(seconds["hooks"], seconds["bare"])
        yield Ratio(contest, key, popped, _ratio(times, seconds["bare"]), limit)


def spread(seconds: Times) -> tuple[float, float]:
    """Bare against bare: the least and the greatest median of ten parts of the rounds."""
    pairs = [again / bare for again, bare in zip(seconds["bare again"], seconds["bare"], strict=True)]
    size = max(1, len(pairs) // 10)
    medians = [median(pairs[start : start + size]) for start in range(0, len(pairs) - size + 1, size)]
    return min(medians), max(medians)


def _ratio(times: Sequence[float], bare: Sequence[float]) -> float:
    return median(one / other for one, other in zip(times, bare, strict=True))


def contest_table(contests: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One row per contestant and way to hold values, one column per model."""
    found = {(run["contest"], run["popped"]): run["seconds"] for run in contests}
    titles = {run["contest"]: run["title"] for run in contests}
    names = [name for name in CASES if name in titles]
    yield "| | values | " + " | ".join(titles[name] for name in names) + " |"
    yield "|---|---|" + "---:|" * len(names)
    for popped in (True, False):
        how = "popped" if popped else "retained"
        runs = {name: found[name, popped] for name in names if (name, popped) in found}
        bare = (f"{1e6 * median(runs[name]['bare']):,.0f} us" for name in runs)
        yield f"| bare forward pass | {how} | " + " | ".join(bare) + " |"
        spreads = {name: spread(runs[name]) for name in runs}
        noise = (f"{low:.2f}-{high:.2f}" for low, high in spreads.values())
        yield f"| bare against bare (the noise) | {how} | " + " | ".join(noise) + " |"
        cells = {
            (row.contestant, name): row.cell(spreads[name][1])
            for name in runs
            for row in ratios(name, popped, runs[name])
        }
        for key, contestant in CONTESTANTS.items():
            if not key.startswith("bare"):
                yield f"| {contestant.NAME} | {how} | " + " | ".join(cells[key, name] for name in runs) + " |"
    for reference in dict.fromkeys(run["reference"] for run in references):
        runs = {run["contest"]: run["seconds"] for run in references if run["reference"] == reference}
        cells_ = (
            f"{_ratio(runs[name]['reference'], runs[name]['bare']):.1f}" if name in runs else "" for name in names
        )
        yield f"| {reference} | retained | " + " | ".join(cells_) + " |"


def budget_table(budgets: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The figures that are no ratios."""
    yield "| figure | measured | limit | |"
    yield "|---|---:|---:|---|"
    for run in budgets:
        verdict = "met" if run["value"] <= run["limit"] else "**missed**"
        unit = run["unit"]
        yield f"| {run['figure']} | {run['value']:.2f} {unit} | {run['limit']:g} {unit} | {verdict} |"


def machine(benchmarked: Mapping[str, Any]) -> str:
    """On what it was measured, and with what."""
    cpu = benchmarked["machine_info"]["cpu"]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    return (
        f"{cpu.get('brand_raw', 'unknown CPU')}, {cpu.get('count', '?')} cores, one thread used; "
        f"{platform.system()} {platform.release()}; Python {platform.python_version()}, "
        f"fastrec {fastrec.__version__}, {packages}; "
        f"{benchmarked['datetime'][:10]}"
    )


def main(benchmarked_path: str, costs_path: str) -> None:
    benchmarked = json.loads(Path(benchmarked_path).read_text())
    costs = json.loads(Path(costs_path).read_text())
    runs = [run["extra_info"] for run in benchmarked["benchmarks"]]
    contests = [run for run in runs if "popped" in run]
    references = [run for run in runs if "reference" in run]
    budgets = [run for run in runs if "figure" in run]
    lines = [
        "# What recording costs",
        "",
        f"Made by `{COMMAND}` on {machine(benchmarked)}.",
        "README.md says how it is measured, and what the contestants do.",
        "",
        "## Ratios to the bare forward pass",
        "",
        *contest_table(contests, references),
        "",
        "In brackets the limit. Those of `keep_module` and of the static engine are what hooks by hand cost on the "
        "same model, for the static engine 0.95 of it on the MLP.",
        "",
        "## Sessions, memory, import",
        "",
        *budget_table(budgets),
        "",
        "## What costs what",
        "",
        "Per event, on this machine; each figure is a difference of two loops (`python -m benchmarks.costs`).",
        "",
        "| | ns |",
        "|---|---:|",
        *(f"| {name} | {ns:,.0f} |" for name, ns in costs.items()),
        "",
    ]
    (HERE / "results.md").write_text("\n".join(lines))
    figures = {
        "machine": machine(benchmarked),
        "command": COMMAND,
        "contests": [
            {
                "contest": run["contest"],
                "popped": run["popped"],
                "rounds": len(run["seconds"]["bare"]),
                "passes": run["passes"],
                "bare_us": 1e6 * median(run["seconds"]["bare"]),
                "spread": spread(run["seconds"]),
                "ratios": [asdict(row) for row in ratios(run["contest"], run["popped"], run["seconds"])],
            }
            for run in contests
        ],
        "references": [
            {key: run[key] for key in ("reference", "contest")}
            | {"ratio": _ratio(run["seconds"]["reference"], run["seconds"]["bare"])}
            for run in references
        ],
        "budgets": budgets,
        "costs_ns": costs,
    }
    (HERE / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
