"""Recordings with everything that files can hold, the same each time, whichever version of fastrec writes them.

    python -m tests.sinks.hdf5.recordings recordings.zip

writes all of them, with what can be read of them, into one archive. ``data/recordings.zip`` was made so before classes
and fields got their present names. ``test_format.py`` checks that today's code reads it, and writes the same.
"""

import json
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fastrec
from fastrec import CaptureSpec, Recorder, Recording
from fastrec.files import merge, repack
from fastrec.predicates import module, op
from fastrec.sinks import HDF5Sink

SMALL = {"segment_bytes": 1 << 20, "block_bytes": 1 << 12, "flush_seconds": 1000}
"""Little room, and flushes only where the program asks for them, so that rows lie in the same places each time."""


class Agent(nn.Module):
    """Exact operations only, so that the values are the same on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Identity(), nn.Identity()
        self.late = nn.ModuleList(nn.Identity() for _ in range(6))

    def forward(self, x: torch.Tensor, parts: int = 0) -> torch.Tensor:
        x = self.body(x + 1)
        for part in self.late[:parts]:
            x = part(x * 2)
        return self.head(x.bfloat16())


def total(value: torch.Tensor) -> torch.Tensor:
    return value.float().sum(0)


KEEP: dict[str, Any] = {
    "keep_op": op("add") | op("mul").with_(save_activation=False),
    "keep_module": module("body").with_(transform=total)
    | module("head", "late.*")
    | module("").with_(transform=total, save_raw=False, dtype=torch.float64),
    "history_size": 3,
}


def play(rec: Recorder, first: int, stop: int, parts: int) -> None:
    """Passes in two phases with sample ids, steps with late columns, values of two sizes."""
    for i in range(first, stop):
        with rec.phase("eval" if i % 4 == 3 else "rollout"):
            rec.log((torch.full((1 + i % 2, 3), float(i)), parts), sample_id=f"s{i}" if i % 5 == 0 else i)
            late = {"value": [i / 2, i / 4]} if i % 3 else {}
            rec.step(reward=[i, -i], terminated=[i % 6 == 5, False], truncated=[False, False], **late)


def plain(folder: Path, **options: Any) -> None:
    with Recorder(Agent(), sink=HDF5Sink(folder / "run.h5", **{**SMALL, **options}), **KEEP) as rec:
        play(rec, 0, 12, 1)


def compressed(folder: Path) -> None:
    plain(folder, compression="gzip:4", dtype=torch.float16)


def ended_badly(folder: Path) -> None:
    """A pass that failed, one that was halted, one that kept nothing, and predicates that raised."""

    def keep(ctx: fastrec.RecordContext) -> bool:
        if ctx.pass_index == 1:
            raise ValueError("pass one")
        return ctx.pass_index != 4

    def stop(ctx: fastrec.RecordContext) -> None:
        if ctx.pass_index == 3 and ctx.layer_type == "add":
            fastrec.halt("three")

    model = Agent()
    options: dict[str, Any] = {"keep_op": keep, "halt": stop, "on_predicate_error": "collect"}
    options["on_forward_error"] = "keep"
    with Recorder(model, sink=HDF5Sink(folder / "run.h5", **SMALL), **options) as rec:
        for i in range(6):
            try:
                rec.log((torch.full((2,), float(i)), "x" if i == 2 else 1))
            except TypeError:
                assert i == 2


def several_segments(folder: Path) -> None:
    """Sites that come late, until there is no room for more; zero bytes and many dimensions at the end."""
    sink = HDF5Sink(folder / "run.h5", **SMALL)
    with Recorder(Agent(), sink=sink, **KEEP) as rec:
        for parts in range(7):
            play(rec, 4 * parts, 4 * parts + 4, parts)
            rec.flush()
        for value in (torch.zeros(0, 3), torch.ones((1,) * 40), torch.ones(3, dtype=torch.int16)):
            rec.log(value)
            rec.flush()
        for size in range(4, 12):
            rec.log(torch.ones(size, 2))
            rec.flush()


def continued(folder: Path) -> None:
    """Three sessions, each with an open step at its end."""
    for number in range(3):
        with Recorder(Agent(), sink=HDF5Sink(folder / "run.h5", append=True, **SMALL), **KEEP) as rec:
            play(rec, number, 6 + number, 1 + number)
            rec.log(torch.full((1, 3), -1.0))


def merged(folder: Path) -> None:
    for rank in range(2):
        os.environ["RANK"] = str(rank)
        with Recorder(Agent(), sink=HDF5Sink(folder / f"rank.{rank}.h5", **SMALL), **KEEP) as rec:
            play(rec, 10 * rank, 10 * rank + 5, 1 + rank)
        del os.environ["RANK"]
    merge([folder / "rank.0.h5", folder / "rank.1.h5"], folder / "run.h5")


def merged_virtually(folder: Path) -> None:
    merged(folder)
    os.unlink(folder / "run.h5")
    merge([folder / "rank.0.h5", folder / "rank.1.h5"], folder / "run.h5", virtual=True)


def repacked(folder: Path) -> None:
    continued(folder)
    repack(folder / "run.h5", folder / "again.h5", compression="lzf")
    for path in folder.glob("run*"):
        path.unlink()
    (folder / "again.h5").rename(folder / "run.h5")


def killed(folder: Path) -> None:
    """What is there of several segments before the session ends, as a process that is killed leaves it."""
    with tempfile.TemporaryDirectory() as growing:
        with Recorder(Agent(), sink=HDF5Sink(Path(growing) / "run.h5", **SMALL), **KEEP) as rec:
            for parts in range(7):
                play(rec, 4 * parts, 4 * parts + 4, parts)
                rec.flush()
            for size in (5, 6):  # after the file got its structure: these lie in the overflow set
                rec.log(torch.full((size, 2), float(size)))
                rec.step(reward=[size, size], terminated=[False, True], truncated=[True, False], size=size)
                rec.flush()
            for path in sorted(Path(growing).iterdir()):
                shutil.copyfile(path, folder / path.name)


def of_every_dtype(folder: Path) -> None:
    dtypes = "bool uint8 int64 float16 bfloat16 float32 float8_e4m3fn float8_e5m2 complex32 complex64".split()
    capture = CaptureSpec()
    with Recorder(nn.Identity(), keep_module=True, capture=capture, sink=HDF5Sink(folder / "run.h5", **SMALL)) as rec:
        for i, name in enumerate(dtypes):
            size = getattr(torch, name).itemsize
            bits = torch.full((2, 3 * size), i % 2, dtype=torch.uint8)
            rec.log(bits.bool() if name == "bool" else bits.view(getattr(torch, name)))


RECORDINGS: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        *(plain, compressed, ended_badly, several_segments, continued, merged, merged_virtually, repacked, killed),
        of_every_dtype,
    )
}


def make(name: str, folder: Path) -> dict[str, Any]:
    """Write one of the recordings; all that can be read of it but times, as JSON has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about failures, and sites that a short run never reaches
        RECORDINGS[name](folder)
        return contents(fastrec.load(folder / "run.h5"))


def contents(recording: Recording) -> dict[str, Any]:
    """All that can be read of a recording but times, as JSON has it."""
    steps = recording.steps
    found = {
        "passes": recording.n_passes,
        "records": [record_contents(record) for record in recording],
        "columns": {name: np.ma.filled(steps[name].astype(float), -1e9).tolist() for name in steps},
        "steps": list(zip(steps.phase.tolist(), steps.step.tolist(), strict=True)),
        "failures": [(f.error, f.context.pass_index, f.context.site) for f in recording.predicate_failures],
        "halted": list(recording.halted.items()),
        "ranks": [(rank, len(part)) for rank, part in recording.ranks.items()],
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def record_contents(record: fastrec.ActivationRecord) -> dict[str, Any]:
    ctx = record.ctx
    named = ("pass_index", "label", "site", "kind", "entry", "entry_pass", "phase", "step", "sample_id", "event_index")
    return {
        **{name: getattr(ctx, name, None) for name in named},  # where only modules were kept, ops were not counted
        "recent_ops": [event.label for event in getattr(ctx, "recent_ops", ())],
        "dtype": str(record.spec.dtype),
        "activation": bits_of(record.activation),
        "transformed": bits_of(record.transformed_activation),
    }


def bits_of(value: torch.Tensor | None) -> list[Any] | None:
    if value is None:
        return None
    bits = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes().hex() if value.numel() else ""
    return [str(value.dtype), list(value.shape), bits]


def main(archive: str) -> None:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as whole:
        for name in RECORDINGS:
            place = Path(folder) / name
            place.mkdir()
            whole.writestr(f"{name}/contents.json", json.dumps(make(name, place)))
            for path in sorted(place.iterdir()):
                whole.write(path, f"{name}/{path.name}", compresslevel=9)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
