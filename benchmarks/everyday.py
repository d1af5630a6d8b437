"""What the second step costs: features, extraction, shuffled batches, episodes: ``python -m benchmarks.everyday``.

Each row times fastrec against code that one writes by hand, by turns in one process, after a round that does not count.
Results are compared first. A figure is the median over the rounds of the CPU time of all threads, divided by that of
the other in the same round, and in brackets the least and the greatest. The rows of torchvision need it.
"""

from __future__ import annotations

import os
import platform
import random
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor, nn

import fastrec
from benchmarks.models import ResNet18
from fastrec.exports import to_d4rl

TABLE = Path(__file__).with_suffix(".md")


class Row(NamedTuple):
    what: str
    ours: str
    ratio: str
    limit: str


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        for made in (shuffled(folder), extraction(folder), episodes(folder), features()):
            for line in made:
                print(" | ".join(line), flush=True)
                rows.append(line)
    lines = [
        "# Every day",
        "",
        f"Made by `make bench-everyday`. {' '.join((__doc__ or '').split())}",
        "",
        "| what | fastrec | ratio | at most |",
        "|---|---:|---:|---:|",
        *(f"| {row.what} | {row.ours} | {row.ratio} | {row.limit} |" for row in rows),
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, one thread used; {platform.platform()}; "
        f"Python {platform.python_version()}, fastrec {fastrec.__version__}, torch {torch.__version__}, "
        f"numpy {np.__version__}, h5py {h5py.__version__}.",
    ]
    TABLE.write_text("\n".join(lines) + "\n")


def compared(ours: Callable[[], Any], other: Callable[[], Any], rounds: int) -> tuple[float, list[float]]:
    """The median seconds of ours, and for each round by how much longer it took than the other."""
    times: dict[Callable[[], Any], list[float]] = {ours: [], other: []}
    for number in range(rounds + 1):
        for call in random.sample(list(times), 2):
            start = process_time()
            call()
            if number:
                times[call].append(process_time() - start)
    return median(times[ours]), [a / b for a, b in zip(times[ours], times[other], strict=True)]


def row(what: str, timed: tuple[float, list[float]], limit: float) -> Row:
    seconds, ratios = timed
    shown = f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"
    return Row(what, shown, f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})", f"{limit:.2f}")


def shuffled(folder: Path) -> Iterator[Row]:
    """Batches of rows with their labels, against reading the same data set chunk by chunk."""
    width, batch, count = 256, 256, 400
    model, path, plain = nn.Sequential(nn.Linear(8, width), nn.Tanh()), folder / "rows.h5", folder / "plain.h5"
    labels = torch.arange(batch * count).reshape(count, batch)
    with torch.no_grad(), fastrec.Recorder(model, keep_op="tanh", sink=path) as rec:
        for of_batch in labels:
            model(torch.randn(batch, 8))
            rec.step(label=of_batch.numpy())
    recording = fastrec.load(path)
    with h5py.File(plain, "w") as file:
        values = recording.stack("1/tanh", by="sample").numpy()
        file.create_dataset("x", data=values, chunks=(2048, width))
    seen: list[Tensor] = []

    def ours() -> None:
        seen.clear()
        for of_batch in recording.iter_batches(["1/tanh", "label"], 256, by="sample", shuffle=True):
            seen.append(of_batch["label"])

    def by_hand() -> None:
        with h5py.File(plain) as file:
            for start in np.random.permutation(len(values) // 2048) * 2048:
                file["x"][start : start + 2048]

    ours()
    assert torch.equal(torch.cat(seen).sort().values, labels.flatten())
    what = (
        "shuffled batches of 256 rows of 1 KiB with a label, against chunks of 2,048 rows in random order, not shuffled"
    )
    yield row(what, compared(ours, by_hand, 7), 2.0)


def extraction(folder: Path) -> Iterator[Row]:
    """ResNet-18 over 512 images into a file, against a hook and a list."""
    model, images, numbers = ResNet18().eval(), torch.randn(256, 3, 64, 64), iter(range(1000))
    address = "layer4"

    def ours() -> Tensor:
        path = folder / f"features-{next(numbers)}.h5"
        found = fastrec.extract(model, images, keep_module=address, to=path, progress=False)
        return found.stack(address, by="sample")

    def by_hand() -> Tensor:
        kept: list[Tensor] = []
        hook = model.get_submodule(address).register_forward_hook(lambda module, args, out: kept.append(out.clone()))
        with torch.no_grad():
            for part in images.split(32):
                model(part)
        hook.remove()
        return torch.cat(kept)

    assert torch.allclose(ours(), by_hand(), atol=1e-4)
    yield row(
        "`extract` of ResNet-18, 256 images of 64x64, written and read, against a hook that writes nothing",
        compared(ours, by_hand, 7),
        1.05,
    )


def episodes(folder: Path) -> Iterator[Row]:
    """20,000 episodes of ten steps in D4RL's layout, against the same arrays cut by hand."""
    model, envs, steps = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), 8, 25_000
    ends, numbers = np.arange(envs), iter(range(1000))
    arrays: dict[str, Any] = {name: [] for name in ("obs", "action", "reward", "terminated")}
    with torch.no_grad(), fastrec.Recorder(model, keep_op="tanh") as rec:
        for t in range(steps):
            obs = np.random.rand(envs, 4).astype(np.float32)
            model(torch.from_numpy(obs))
            given = {
                "obs": obs,
                "action": np.full(envs, t % 2),
                "reward": np.ones(envs),
                "terminated": (t + ends) % 10 == 9,
            }
            rec.step(**given, truncated=np.zeros(envs, bool))
            for name, value in given.items():
                arrays[name].append(value)
    recording = rec.recording
    arrays = {name: np.stack(values) for name, values in arrays.items()} | {"hidden": recording.stack("1/tanh").numpy()}

    def ours() -> Path:
        path = folder / f"d4rl-{next(numbers)}.h5"
        to_d4rl(recording, path, keys={"1/tanh": "hidden"}, observations="obs", actions="action")
        return path

    def by_hand() -> Path:
        path, parts = folder / f"by-hand-{next(numbers)}.h5", dict[str, list[Any]]()
        for env in range(envs):
            edges = [0, *(np.flatnonzero(arrays["terminated"][:, env]) + 1).tolist(), steps]
            for start, stop in zip(edges, edges[1:], strict=False):
                for name, values in arrays.items():
                    parts.setdefault(name, []).append(values[start:stop, env])
        with h5py.File(path, "w") as file:
            for name, episodes_of_name in parts.items():
                file[name] = np.concatenate(episodes_of_name)
        return path

    with h5py.File(ours()) as first, h5py.File(by_hand()) as second:
        # Ours come in the order in which they began.
        order, other = (np.lexsort(obs[:].T) for obs in (first["observations"], second["obs"]))
        assert np.array_equal(first["observations"][:][order], second["obs"][:][other])
        assert np.array_equal(first["infos/hidden"][:][order], second["hidden"][:][other])
    what = f"{steps * envs // 10:,} episodes of ten steps, cut and written for D4RL, against numpy by hand"
    yield row(what, compared(ours, by_hand, 3), 3.0)


def features() -> Iterator[Row]:
    """Values of torchvision's ResNet-50 as a module, against its own extractor and against the whole pass."""
    if find_spec("torchvision") is None:
        yield Row("`features`, against torchvision's extractor", "torchvision is not installed", "", "1.05")
        return
    from tests.zoo.vision import define_operators

    define_operators()
    from torchvision.models import resnet50
    from torchvision.models.feature_extraction import create_feature_extractor

    model, images = resnet50().eval(), torch.randn(4, 3, 112, 112)
    for names in (["layer2"], ["layer1", "layer4"], ["layer1", "layer2.0.relu", "layer4"]):
        sites = {name: "layer2.0.relu" if "relu" in name else name for name in names}
        ours, theirs = fastrec.features(model, sites), create_feature_extractor(model, {name: name for name in names})
        with torch.no_grad():
            first, second = ours(images), theirs(images)
            assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in names)
            timed = compared(lambda: ours(images), lambda: theirs(images), 7)  # noqa: B023
        yield row(f"`features` of ResNet-50, {' and '.join(names)}, against torchvision's extractor", timed, 1.05)
    up_to_layer2 = fastrec.features(model, {"low": "layer2"})
    with torch.no_grad():
        timed = compared(lambda: up_to_layer2(images), lambda: model(images), 7)
    yield row("`features` of ResNet-50 up to layer2, against the whole pass", timed, 0.6)


if __name__ == "__main__":
    main()
