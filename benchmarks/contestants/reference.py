"""torchlens, which fastrec is measured against; run in a process of its own, as its versions exclude each other.

``python -m benchmarks.contestants.reference mlp`` prints the seconds of its passes, and of bare passes in the same
rounds, as JSON. It records only calls that it makes itself, and hands nothing over before its session ends.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
import torchlens
from torchlens.fastlog import Recorder

from benchmarks.contest import Contest, check
from benchmarks.contestants import bare
from benchmarks.contestants._watch import Watch
from benchmarks.models import Case, load

NAME = f"torchlens {version('torchlens')}"
KEEPS = True
ROUNDS, MOST_PASSES = 7, 20

_NEW = not hasattr(torchlens, "unwrap_torch")
_unwrap = importlib.import_module("torchlens.backends.torch.wrappers" if _NEW else "torchlens").unwrap_torch


@contextmanager
def watching(case: Case) -> Iterator[Watch]:
    option = "save" if _NEW else "keep_op"
    keep = {option: lambda ctx: ctx.kind == "op" and ctx.layer_type == case.layer_type}
    try:
        with Recorder(case.model, **keep) as recorder:
            yield Watch(
                recorder.log,
                lambda: recorder.recording,
                list,
                lambda recording: [record.ram_payload for record in recording.records],
            )
    finally:
        _unwrap()  # else the bare passes would run through its wrappers of all torch functions


def main(name: str) -> None:
    torch.set_num_threads(1)
    case = load(name)
    check(case, sys.modules[__name__], popped=False)
    contest = Contest(case, {"bare": bare, "reference": sys.modules[__name__]}, popped=False)
    contest.length(1)
    for _ in range(ROUNDS):
        contest.round(min(case.passes, MOST_PASSES))
    print(json.dumps(contest.seconds))


if __name__ == "__main__":
    main(sys.argv[1])
