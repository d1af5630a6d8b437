"""A recording of twenty passes with steps and sample ids, and a look at everything that it has."""

from pathlib import Path

import torch

import fastrec
from fastrec import Recorder
from fastrec.sinks import HDF5Sink


def record_twenty(sink: HDF5Sink) -> Recorder:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    rec = Recorder(model, keep_op=True, keep_module=True, sink=sink).__enter__()
    for i in range(20):
        rec.log(torch.full((2, 3), float(i)), sample_id=f"s{i}")
        rec.step(reward=float(i))
    return rec


def read_all(path: Path) -> None:
    """Look at everything that a recording has."""
    recording = fastrec.load(path)
    assert len(list(recording)) == len(recording)
    for record in recording:
        _ = record.activation, record.transformed_activation, record.ctx.sample_id, repr(record)
    for key in recording.sites:
        recording.stack(f"site:{key}")
    recording.summary()
    assert len(recording.steps) >= 0
