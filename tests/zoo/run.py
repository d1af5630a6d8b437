"""Run the whole zoo and write its table: ``python -m tests.zoo.run docs/zoo.md``.

Models run in a process of their own that goes on after each; one that dies is noted, and the next begins behind it.
"""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import torch

from tests.zoo.language import language_models
from tests.zoo.measure import Row, measure
from tests.zoo.plain import plain_models, policies
from tests.zoo.vision import define_operators, timm_models, torchvision_models

SECONDS_PER_MODEL = 150
PARTS: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "plain torch": plain_models,
    "Stable-Baselines3": policies,
    "transformers": language_models,
    "torchvision": torchvision_models,
    "timm": timm_models,
}


R = TypeVar("R", bound="NamedRow")


class TooLong(RuntimeError):
    """A model took longer than it may."""


class NamedRow(Protocol):
    """What is noted of a model."""

    name: str


def work(models: Iterable[tuple[str, Any]], path: Path, measure: Callable[[str, Any], Any], kind: Any) -> None:
    """Append a row for each model that has none yet; ``kind(name, verdict=...)`` is that of one which can't be run."""
    torch.set_num_threads(1)
    done = {row.name for row in rows_in(path, kind)}

    def stop(*_: object) -> None:
        raise TooLong(f"longer than {SECONDS_PER_MODEL} seconds of the processor")

    signal.signal(signal.SIGPROF, stop)
    for name, make in models:
        if name in done:
            continue
        append(path, kind(name, verdict="failed: the process died"))  # stands unless a better row follows
        signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_MODEL)
        try:
            row = measure(name, make)
        except TooLong as error:
            row = kind(name, verdict=f"not run: {error}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        append(path, row)
        gc.collect()


def append(path: Path, row: Any) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.encode(row) + b"\n")


def rows_in(path: Path, kind: type[R]) -> list[R]:
    """The last row of each model."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return list({row.name: row for row in (msgspec.json.decode(line, type=kind) for line in lines)}.values())


def rows_of_parts(module: str, parts: Iterable[str], folder: Path, kind: type[R]) -> Iterator[tuple[str, list[R]]]:
    """Run ``python -m module --work`` for each part; its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        path = folder / f"{part}.jsonl"
        before = -1
        while len(rows_in(path, kind)) > before:  # goes on behind a model at which the process died
            before = len(rows_in(path, kind))
            command = [sys.executable, "-m", module, "--work", part, str(path)]
            if subprocess.run(command, check=False).returncode == 0:
                break
        yield part, rows_in(path, kind)


def table(parts: dict[str, list[Row]]) -> str:
    """The results as a page."""
    rows = [row for part in parts.values() for row in part]
    run = [row for row in rows if not row.verdict.startswith("not run")]
    lines = [
        "# The zoo",
        "",
        f"{len(rows)} models with random weights, {len(run)} of which run here. "
        f"{sum(row.verdict == 'valid' for row in run)} are valid in all operations; "
        "each of the others says which is not, and why.",
        "",
        "Written by `make test-zoo` on a CPU with one thread, in evaluation mode without gradients, while other work "
        "was going on: seconds are those of one log with all values saved, and the ratio is to the least of two "
        "bare passes. Small models make large ratios. Of torchvision's compiled operators detection needs one, `nms`, "
        "which is written in plain torch for these runs, and of the regions that are proposed a few are kept.",
    ]
    for part, found in parts.items():
        valid = sum(row.verdict == "valid" for row in found)
        lines += ["", f"## {part}: {valid} of {len(found)} valid", ""]
        lines += ["| model | operations | validation | exempted parents | seconds | ratio |"]
        lines += ["|---|--:|---|---|--:|--:|"]
        for row in found:
            exempted = ", ".join(f"{rule} {count}" for rule, count in sorted(row.exempted.items())) or "none"
            verdict = row.verdict.replace("|", "\\|")
            numbers = f"{row.seconds:.3f} | {row.ratio:.1f}" if row.operations else " | "
            lines.append(f"| {row.name} | {row.operations or ''} | {verdict} | {exempted} | {numbers} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Run all parts, or those that are named, and write the page."""
    define_operators()  # whatever imports torchvision, transformers included
    if arguments[0] == "--work":
        work(PARTS[arguments[1]](), Path(arguments[2]), measure, Row)
        return
    folder = Path(arguments[1]) if len(arguments) > 1 else Path(tempfile.mkdtemp())
    found: dict[str, list[Row]] = {}
    for part, rows in rows_of_parts("tests.zoo.run", PARTS, folder, Row):
        found[part] = rows
        Path(arguments[0]).write_text(table(found))
    wrong = [row.name for part in found.values() for row in part if not row.verdict.startswith(("valid", "not run"))]
    sys.exit(f"not valid: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
