"""What recording into a file costs: ``python -m benchmarks.files``, which writes files.md beside it.

Contestants take turns in one process. Everything that was written is read back and compared before a figure counts.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

import fastrec
from benchmarks.models import load as load_case
from fastrec import Recorder
from fastrec.sinks import HDF5Sink, RAMSink

HERE = Path(__file__).parent
TORCHLENS = "2.36.1"

Row = tuple[str, str, str]
"""What was measured, the figure, the limit."""


class NullSink:
    """Takes records and drops them: what a recorder costs without a sink."""

    def open(self, catalog: Any) -> NullSink:
        return self

    def column(self, meta: int, value: Tensor) -> NullSink:
        return self

    def append(self, value: Tensor) -> int:
        return 0

    def discard(self, row: int) -> None:
        pass

    def commit(self, *_: Any) -> None:
        pass

    def mark(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Turns:
    """Passes of several contestants in turn: the wall time of each pass, the CPU time of this thread for each turn."""

    def __init__(self, names: list[str]) -> None:
        self.wall: dict[str, list[list[float]]] = {name: [] for name in names}
        self.cpu: dict[str, list[float]] = {name: [] for name in names}

    def take(self, name: str, once: Callable[[], Any], passes: int, warm: int) -> None:
        """One contestant makes so many passes."""
        for _ in range(warm):
            once()
        times, began = [], thread_time()
        for _ in range(passes):
            start = perf_counter()
            once()
            times.append(perf_counter() - start)
        self.cpu[name].append((thread_time() - began) / passes)
        self.wall[name].append(times)

    def ratio(self, name: str, other: str) -> float:
        """The median over the turns of the quotient of their median passes."""
        pairs = zip(self.wall[name], self.wall[other], strict=True)
        return median(median(mine) / median(others) for mine, others in pairs)

    def microseconds_more(self, name: str, other: str) -> float:
        """How much CPU time of this thread one pass takes more."""
        return 1e6 * median(a - b for a, b in zip(self.cpu[name], self.cpu[other], strict=True))

    def percentile(self, name: str, percent: float) -> float:
        """A percentile of all passes, in microseconds."""
        return 1e6 * float(np.percentile(np.concatenate([np.array(times) for times in self.wall[name]]), percent))


@contextmanager
def session(model: nn.Module, sink: Any, **options: Any) -> Iterator[None]:
    """A recorder, or none where there is no sink."""
    if sink is None:
        yield
        return
    with Recorder(model, sink=sink, **options):
        yield


def policy(folder: Path, rounds: int = 12, passes: int = 4000, warm: int = 1500) -> list[Row]:
    """A small policy whose pass keeps four records of 4 KiB."""
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(64, 64), nn.Tanh())))
    obs = torch.randn(16, 64)
    sinks: dict[str, Callable[[Path], Any]] = {
        "bare": lambda path: None,
        "null": lambda path: NullSink(),
        "ram": lambda path: RAMSink(),
        "file": lambda path: HDF5Sink(path),
        "static": lambda path: HDF5Sink(path),
    }
    turns, order = Turns(list(sinks)), list(sinks)
    with torch.no_grad():
        expected = model[:2](obs)
        for number in range(rounds):
            order = order[1:] + order[:1]
            for name in order:
                path = folder / f"{number}.h5"
                with session(model, sinks[name](path), keep_op="tanh", engine="static" if name == "static" else "auto"):
                    turns.take(name, lambda: model(obs), passes, warm=warm)
                if name in ("file", "static"):
                    kept = fastrec.load(path).stack("tanh_1")
                    assert len(kept) == passes + warm and bool((kept == expected).all())
                    path.unlink()
    bare, tail = turns.percentile("bare", 50), turns.percentile("file", 99.9)
    return [
        ("policy pass, 4 records of 4 KiB: bare", f"{bare:.1f} us", ""),
        ("into a file, of the same recorder into RAM", f"{turns.ratio('file', 'ram'):.3f}", "1.08"),
        ("into a file, of the bare pass, eager engine", f"{turns.ratio('file', 'bare'):.3f}", ""),
        ("into a file, of the bare pass, static engine", f"{turns.ratio('static', 'bare'):.3f}", "1.30"),
        ("the file's own share of a record", f"{turns.microseconds_more('file', 'null') / 4:.2f} us", "3 us"),
        ("RAM's own share of a record", f"{turns.microseconds_more('ram', 'null') / 4:.2f} us", ""),
        ("99.9 % of passes take at most, more than the median bare pass", f"{tail - bare:.0f} us", "300 us"),
        ("the same of the bare passes themselves", f"{turns.percentile('bare', 99.9) - bare:.0f} us", ""),
    ]


def large(folder: Path, rounds: int = 5, count: int = 200) -> list[Row]:
    """Records of 6.1 MiB, against the same bytes by ``os.write``."""
    values = [torch.randn(8, 64, 56, 56) for _ in range(8)]
    seconds: dict[str, list[float]] = {"raw": [], "file": []}
    model = nn.Identity()
    for number in range(rounds):
        for name in ("raw", "file") if number % 2 else ("file", "raw"):
            path = folder / f"{name}.h5"
            os.sync()
            began = perf_counter()
            if name == "raw":
                with open(path, "wb", buffering=0) as file:
                    for i in range(count):
                        file.write(values[i % 8].numpy().data)
            else:
                with session(model, HDF5Sink(path), keep_module=True):
                    for i in range(count):
                        model(values[i % 8])
            seconds[name].append(perf_counter() - began)
            if name == "file":
                recording = fastrec.load(path)
                assert len(recording) == count and torch.equal(recording[count - 1].activation, values[(count - 1) % 8])
            for each in folder.iterdir():  # a large recording has several files
                each.unlink()
    best = {name: count * values[0].nbytes / min(times) / 1e6 for name, times in seconds.items()}
    return [
        ("records of 6.1 MiB, of os.write, best of each", f"{best['file'] / best['raw']:.2f}", "0.85"),
        (
            "the same, median of the rounds",
            f"{median(a / b for a, b in zip(seconds['raw'], seconds['file'], strict=True)):.2f}",
            "",
        ),
        ("os.write", f"{best['raw']:.0f} MB/s", ""),
    ]


def resnet(folder: Path, rounds: int = 9, passes: int = 3) -> list[Row]:
    """ResNet-18 on a batch of 8 images, of which two records of 6.1 MiB are kept."""
    model, images = load_case("resnet").model, torch.randn(8, 3, 224, 224)
    turns = Turns(["bare", "file"])
    with torch.no_grad():
        for number in range(rounds):
            for name in ("bare", "file") if number % 2 else ("file", "bare"):
                path = folder / f"{number}.h5"
                sink = HDF5Sink(path) if name == "file" else None
                with session(model, sink, keep_module=["layer1.0", "layer1.1"]):
                    turns.take(name, lambda: model(images), passes, warm=1)
                if name == "file":
                    assert fastrec.load(path).stack("layer1.1").shape == (passes + 1, 8, 64, 56, 56)
                    path.unlink()
    return [
        ("ResNet-18, batch 8, 2 records of 6.1 MiB: bare", f"{turns.percentile('bare', 50) / 1e3:.0f} ms", ""),
        ("into a file, of the bare pass", f"{turns.ratio('file', 'bare'):.3f}", "1.05"),
    ]


def million(folder: Path, passes: int = 250_000) -> list[Row]:
    """A million small records: writing, opening, and reading one site."""
    model, x = nn.Sequential(*(nn.Tanh() for _ in range(4))), torch.randn(16)
    path = folder / "run.h5"
    with torch.no_grad():
        began = perf_counter()
        with Recorder(model, keep_op="tanh", sink=path):
            for _ in range(passes):
                model(x)
        wrote = perf_counter() - began
    opened = min(_seconds(lambda: fastrec.load(path)) for _ in range(5))
    recording = fastrec.load(path)
    assert len(recording) == 4 * passes
    read, plain = [], []
    for _ in range(7):
        read.append(_seconds(lambda: recording.stack("tanh_1")))
        with h5py.File(path) as file:
            plain.append(_seconds(file["data/0|tanh"].__getitem__, slice(None)))
    assert bool((recording.stack("tanh_1") == x.tanh()).all())
    return [
        ("a million records of 64 bytes: written", f"{4 * passes / wrote:.0f} records/s", ""),
        ("opened", f"{opened:.3f} s", "0.2 s"),
        ("stack of one site, of plain h5py", f"{min(plain) / min(read):.2f}", "0.7"),
    ]


def reference(folder: Path, passes: int = 2000) -> list[Row]:
    """Against the bundle of torchlens, where ``make bench-reference`` has installed it."""
    model, x = _both()
    path = folder / "run.h5"
    with torch.no_grad():
        began = perf_counter()
        with Recorder(model, keep_op="tanh", sink=path):
            for _ in range(passes):
                model(x)
        mine = 2 * passes / (perf_counter() - began)
    assert len(fastrec.load(path)) == 2 * passes
    packages = HERE.parent / ".benchmarks" / f"torchlens-{TORCHLENS}"
    if not packages.is_dir():
        return [("against the reference", "not installed", "50")]
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.files", str(folder / "bundle")],
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = float(found.stdout.splitlines()[-1])
    return [
        ("two records of 4 KiB per pass, session included", f"{mine:.0f} records/s", ""),
        (f"torchlens {TORCHLENS} into its bundle", f"{theirs:.0f} records/s", ""),
        ("as many more per second", f"{mine / theirs:.0f}", "50"),
    ]


def reference_alone(bundle: str, passes: int = 40) -> float:
    """The records per second of torchlens."""
    from torchlens.fastlog import Recorder as Lens  # type: ignore[import-not-found]
    from torchlens.options import StreamingOptions  # type: ignore[import-not-found]

    model, x = _both()
    streaming = StreamingOptions(bundle_path=bundle, retain_in_memory=False)
    with Lens(model, save=lambda ctx: ctx.kind == "op" and ctx.layer_type == "tanh", streaming=streaming) as lens:
        lens.log(x)  # wraps all functions of torch
        began = perf_counter()
        for _ in range(passes):
            lens.log(x)
        return 2 * passes / (perf_counter() - began)


def _both() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    return model, torch.randn(16, 64)


def _seconds(function: Callable[..., Any], *given: Any) -> float:
    began = perf_counter()
    function(*given)
    return perf_counter() - began


PARTS: Mapping[str, Callable[[Path], list[Row]]] = {
    "policy": policy,
    "large": large,
    "resnet": resnet,
    "million": million,
    "reference": reference,
}


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1 and sys.argv[1] not in PARTS:
        print(reference_alone(sys.argv[1]))
        return
    rows: list[Row] = []
    for name in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory(dir=HERE.parent) as folder:
            began = perf_counter()
            found = PARTS[name](Path(folder))
            print(f"{name}: {perf_counter() - began:.0f} s", *found, sep="\n  ", flush=True)
            rows += found
    if len(sys.argv) == 1:
        (HERE / "files.md").write_text(_page(rows))


def _page(rows: list[Row]) -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, h5py {h5py.__version__}"
    table = "\n".join(f"| {what} | {figure} | {limit} |" for what, figure, limit in rows)
    return f"""# Recording into files

Written by `make bench-files`, which takes about four minutes. {os.cpu_count()} cores, {platform.machine()}; {versions}.
One thread computes. Contestants take turns in one process; a ratio is the median over the rounds of that of the median
passes, and a share is CPU time of the recording thread. What was written is read back and compared.

| what | measured | limit |
|---|---|---|
{table}
"""


if __name__ == "__main__":
    main()
