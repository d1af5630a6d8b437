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
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.graph_models import CASES, TIMED, Additions
from fastrec._op_table import canonical

ROUNDS = 9
Operation = dict[str, Any]


def fastrec_contestant() -> tuple[str, dict[str, Callable[..., Any]]]:
    from fastrec.graph import get_model_metadata, log_forward_pass

    return "fastrec", {"full": log_forward_pass, "metadata": get_model_metadata}


def torchlens_contestant() -> tuple[str, dict[str, Callable[..., Any]]]:
    import torchlens

    if hasattr(torchlens, "unwrap_torch"):
        log = torchlens.log_forward_pass
        jobs = {"full": log, "metadata": lambda model, x: log(model, x, layers_to_save=None)}
    else:
        jobs = {"full": torchlens.trace}
    return f"torchlens {version('torchlens')}", jobs


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


def operations(log: Any) -> list[Operation]:
    """What ran, in order, with the places of the parents."""
    entries = list(log.operations if hasattr(log, "operations") else log.layer_list)
    labels = {getattr(e, "layer_label_w_pass", None) or e.layer_label: place for place, e in enumerate(entries)}
    labels |= {label.removesuffix(":1"): place for label, place in labels.items() if label.endswith(":1")}
    return [
        {
            "type": _type(e),
            "parents": sorted({labels[parent] for parent in e.parent_layers if parent in labels}),
            "label": e.layer_label,
        }
        for e in entries
    ]


def _type(entry: Any) -> str:
    name = getattr(entry, "func_applied_name", None) or getattr(entry, "func_name", None)
    kind = str(entry.layer_type)
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
    name, jobs = fastrec_contestant() if which == "fastrec" else torchlens_contestant()
    found: dict[str, Any] = {"name": name, "seconds": {case: timed(case, jobs) for case in TIMED}, "operations": {}}
    if "metadata" in jobs:  # 2.36.1 tells of its graph in other words
        for case in CASES:
            torch.manual_seed(0)
            made = CASES[case]()
            with torch.no_grad():
                found["operations"][case] = operations(jobs["full"](made.model, made.example))
    if which == "fastrec":
        found["growth"] = growth()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
