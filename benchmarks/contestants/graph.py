"""The graph of a pass by fastrec or by the reference, in a process of its own.

``python -m benchmarks.contestants.graph fastrec`` (or ``torchlens``) prints CPU seconds and operations as JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from benchmarks.graph_models import CASES, TIMED, Additions
from fastrec.ops.table import canonical

ROUNDS = 9
Operation = dict[str, Any]


class Contestant(NamedTuple):
    """Its name, what it does, and how each entry of its log is read."""

    name: str
    jobs: dict[str, Callable[..., Any]]
    entries: Callable[[Any], Iterable[Any]]
    label: str = "layer_label_w_pass"
    function: str = "func_applied_name"
    parents: str = "parent_layers"


def fastrec_contestant() -> Contestant:
    from fastrec.graph import get_model_metadata, log_forward_pass

    jobs = {"full": log_forward_pass, "metadata": get_model_metadata}
    return Contestant("fastrec", jobs, lambda log: log.operations)


def torchlens_contestant() -> Contestant:
    import torchlens

    name = f"torchlens {version('torchlens')}"
    if hasattr(torchlens, "unwrap_torch"):
        log = torchlens.log_forward_pass
        jobs = {"full": log, "metadata": lambda model, x: log(model, x, layers_to_save=None)}
        return Contestant(name, jobs, lambda log: log.layer_list, function="func_name")
    return Contestant(name, {"full": torchlens.trace}, lambda log: log.ops, "label", "func_name", "parents")


def release() -> None:
    """Let the reference take its wrappers off torch, through which bare passes would run too."""
    if "torchlens" in sys.modules:
        own = hasattr(sys.modules["torchlens"], "unwrap_torch")
        importlib.import_module("torchlens" if own else "torchlens.backends.torch.wrappers").unwrap_torch()


def cpu_seconds(job: Callable[[], Any]) -> float:
    started = time.process_time()
    job()
    return time.process_time() - started


def timed(name: str, jobs: dict[str, Callable[..., Any]]) -> dict[str, float]:
    """A low percentile of each job's seconds; bare passes come last, so that the reference may stay wrapped before."""
    case = CASES[name]()
    seconds: dict[str, list[float]] = {job: [] for job in ("bare", *jobs)}
    with torch.no_grad():
        for job in jobs.values():
            job(case.model, case.example)
        for _ in range(ROUNDS):
            for job, run in jobs.items():
                seconds[job].append(cpu_seconds(lambda run=run: run(case.model, case.example)))
        release()
        for _ in range(3 * ROUNDS):
            seconds["bare"].append(cpu_seconds(lambda: case.model(case.example)))
    return {job: sorted(found)[len(found) // 5] for job, found in seconds.items()}


def operations(contestant: Contestant, log: Any) -> list[Operation]:
    """What ran, in order, with the places of the parents."""
    entries = list(contestant.entries(log))
    labels = {getattr(e, contestant.label) or e.layer_label: place for place, e in enumerate(entries)}
    labels |= {label.removesuffix(":1"): place for label, place in labels.items() if label.endswith(":1")}
    return [
        {
            "type": _type(str(e.layer_type), getattr(e, contestant.function)),
            "parents": sorted({labels[parent] for parent in getattr(e, contestant.parents) if parent in labels}),
            "label": e.layer_label,
        }
        for e in entries
    ]


def _type(kind: str, name: str | None) -> str:
    return kind if kind in ("input", "output", "buffer") or not name or name == "none" else canonical(name)


def growth() -> dict[str, Any]:
    """Seconds for models of many operations, and the bytes of Python memory that one operation takes."""
    from fastrec.graph import get_model_metadata, log_forward_pass

    found: dict[str, Any] = {"seconds": {}}
    with torch.no_grad():
        for count in (1_000, 10_000, 100_000):
            started = time.process_time()
            str(log_forward_pass(Additions(count), torch.rand(8)))
            found["seconds"][count] = time.process_time() - started
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        history = get_model_metadata(Additions(5_000), torch.rand(8))
        gc.collect()
        found["bytes"] = (tracemalloc.get_traced_memory()[0] - before) / len(history.operations)
        tracemalloc.stop()
    return found


def main(which: str) -> None:
    torch.set_num_threads(1)
    contestant = fastrec_contestant() if which == "fastrec" else torchlens_contestant()
    seconds = {case: timed(case, contestant.jobs) for case in TIMED}
    found: dict[str, Any] = {"name": contestant.name, "seconds": seconds, "operations": {}}
    for case in CASES:
        torch.manual_seed(0)
        made = CASES[case]()
        with torch.no_grad():
            found["operations"][case] = operations(contestant, contestant.jobs["full"](made.model, made.example))
    if which == "fastrec":
        found["growth"] = growth()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
