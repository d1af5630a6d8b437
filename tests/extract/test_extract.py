"""Features of a data set: a row for each sample, in its order, also after a kill at any moment."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fastrec
from fastrec import FastrecWarning, Recording, extract, load
from fastrec._errors import (
    BrokenPromiseError,
    OptionError,
    RecordingExistsError,
    RecordingNotFoundError,
    RecordKeyError,
)

torch.manual_seed(0)
X = torch.randn(50, 4)


class Net(nn.Module):
    """Its head must not run where features are of its body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5))
        self.head, self.head_calls = nn.Linear(8, 2), 0

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.body(x if mask is None else x * mask)
        self.head_calls += 1
        out: Tensor = self.head(hidden)
        return out


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def hidden_of(x: Tensor) -> Tensor:
    model = net().eval()
    with torch.no_grad():
        value: Tensor = model.body(x)
    return value


def stacked(recording: Recording, key: str = "body") -> Tensor:
    return recording.stack(key, by="sample")


def as_rows(value: Tensor) -> Tensor:
    return value.flatten(1).half()


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from X


DATA: dict[str, Callable[[], Any]] = {
    "tensor": lambda: X,
    "array": X.numpy,
    "data set": lambda: TensorDataset(X, torch.arange(50)),
    "loader": lambda: DataLoader(TensorDataset(X), batch_size=7),
    "loader of dicts": lambda: DataLoader([{"x": x, "label": 1, "name": "n"} for x in X], batch_size=8),  # type: ignore[arg-type]
    "stream": lambda: DataLoader(Stream(), batch_size=9),
    "list of batches": lambda: list(X.split(11)),
    "generator": lambda: (part for part in X.split(11)),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("to", [None, "features.h5", "features/"])
def test_rows_are_those_of_the_data_in_its_order(name: str, to: str | None, tmp_path: Path) -> None:
    path = None if to is None else os.path.join(tmp_path, to)
    features = extract(net(), DATA[name](), keep_module="body", to=path, progress=False)
    assert torch.allclose(stacked(features), hidden_of(X), atol=1e-6)
    assert features.rows("body", by="sample").sample_id == list(range(50))
    if path is not None:
        assert torch.equal(stacked(load(path)), stacked(features))


def test_the_model_is_left_as_it_was_and_runs_no_further_than_needed() -> None:
    model = net().train()
    model.body[1].eval()
    modes = [module.training for module in model.modules()]
    extract(model, X, keep_module="body", progress=False)
    assert model.head_calls == 1  # two samples, when nothing is known yet
    assert [module.training for module in model.modules()] == modes
    whole = extract(model, X, keep_module="body", stop_early=False, progress=False)
    assert model.head_calls == 1 + 1 + whole.n_passes


def test_values_are_pooled_cast_and_computed_in_mixed_precision() -> None:
    features = extract(net(), X, keep_module="body.0", transform=as_rows, progress=False)
    assert stacked(features, "body.0").dtype == torch.float16
    assert features[0].transformed_activation is not None
    stored = extract(net(), X, keep_module="body", dtype="float16", progress=False)
    assert torch.allclose(stacked(stored).float(), hidden_of(X), atol=1e-3)
    mixed = extract(net(), X, keep_module="body.0", autocast=torch.bfloat16, progress=False)
    assert stacked(mixed, "body.0").dtype == torch.bfloat16


def test_inputs_and_ids_of_the_users_own() -> None:
    names = [f"s{i}" for i in range(50)]
    batches = [
        {"pixels": x, "mask": torch.zeros(len(x), 1), "id": names[5 * i : 5 * i + 5]} for i, x in enumerate(X.split(5))
    ]
    got = extract(
        net(), batches, keep_module="body", inputs=lambda b: (b["pixels"], b["mask"]), sample_ids="id", progress=False
    )
    assert torch.allclose(stacked(got), hidden_of(X * 0), atol=1e-6)
    assert got.rows("body", by="sample").sample_id == names
    got = extract(
        net(),
        batches,
        keep_module="body",
        inputs=lambda b: {"x": b["pixels"]},
        sample_ids=lambda b: b["id"],
        progress=False,
    )
    assert torch.allclose(stacked(got), hidden_of(X), atol=1e-6)
    got = extract(net(), X, keep_module="body", sample_ids=names, progress=False)
    assert got.rows("body", by="sample").sample_id == names


def test_a_folder_of_images(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images" / "b").mkdir(parents=True)
    for i, name in enumerate(["c.png", "a.JPG", "b/x.png"]):
        Image.new("L", (2, 2), 60 * i).save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("no image")

    def preprocess(image: Any) -> Tensor:
        assert image.mode == "RGB"
        return torch.tensor(np.asarray(image)[..., 0].reshape(4) / 255, dtype=torch.float32)

    got = extract(net(), tmp_path / "images", keep_module="body", preprocess=preprocess, batch_size=2, progress=False)
    assert got.rows("body", by="sample").sample_id == ["a.JPG", "b/x.png", "c.png"]
    with pytest.raises(OptionError, match="give preprocess=, a function from a PIL image to a tensor"):
        extract(net(), tmp_path / "images", keep_module="body")
    with pytest.raises(OptionError, match="is no folder with images"):
        extract(net(), tmp_path / "nowhere", keep_module="body", preprocess=preprocess)


SCRIPT = """
import sys, time
import torch, fastrec
from tests.extract.test_extract import X, net
def slowly(batch):
    time.sleep(0.15)
    return batch
fastrec.extract(net(), X, keep_module="body", to=sys.argv[1], batch_size=2, inputs=slowly, progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["features.h5", "features/"])
def test_a_killed_run_goes_on_with_no_sample_twice_and_none_missing(to: str, tmp_path: Path) -> None:
    path, n_done = os.path.join(tmp_path, to), [0]
    for seconds in (0.0, 1.2, 1.3):  # what a second old is, is safe
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, path])
        give_up, files = time.monotonic() + 60, _files(path)
        while child.poll() is None and _files(path) == files and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        with suppress(RecordingNotFoundError), warnings.catch_warnings():
            warnings.simplefilter("ignore", FastrecWarning)  # a file of the folder has only begun
            n_done.append(sum(len(set(record.ctx.sample_id)) for record in load(path)))
    assert 0 < n_done[-1] < 50 and n_done == sorted(n_done)
    features = extract(net(), X, keep_module="body", to=path, batch_size=2, progress=False)
    assert features.rows("body", by="sample").sample_id == list(range(50))
    assert torch.allclose(stacked(features), hidden_of(X), atol=1e-6)


def _files(path: str) -> dict[str, int]:
    """The files of a recording, and when each was written."""
    folder = Path(path if path.endswith("/") else os.path.dirname(path))
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*")}


@pytest.mark.parametrize("name", ["tensor", "loader", "generator", "stream"])
@pytest.mark.parametrize("to", ["features.h5", "features/"])
def test_an_interrupted_run_goes_on_behind_the_last_batch(name: str, to: str, tmp_path: Path) -> None:
    path, n_seen = os.path.join(tmp_path, to), 0

    def inputs(batch: Any) -> Any:
        nonlocal n_seen
        n_seen += 1
        if n_seen == 3:
            raise KeyboardInterrupt
        return batch[0] if isinstance(batch, list) else batch

    options: Any = {"keep_module": "body", "to": path, "batch_size": 8, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        extract(net(), DATA[name](), inputs=inputs, **options)
    n_before = load(path).n_passes
    model = net()
    features = extract(model, DATA[name](), **options)
    assert features.n_passes > n_before == 2
    assert features.rows("body", by="sample").sample_id == list(range(50))
    assert torch.allclose(stacked(features), hidden_of(X), atol=1e-6)
    again = extract(model, DATA[name](), **options)
    assert model.head_calls == 1 and again.n_passes == features.n_passes


def test_nothing_is_mixed_with_what_was_made_in_another_way(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    options: Any = {"to": path, "progress": False}
    extract(net(), X[:32], keep_module="body", **options)
    with pytest.raises(RecordingExistsError, match="exists; remove it, give another path"):
        extract(net(), X, keep_module="body", resume=False, **options)
    with pytest.raises(
        OptionError, match=r"extracted with keep_module=module\('body'\), and this call has module\('head'"
    ):
        extract(net(), X, keep_module="head", **options)
    with pytest.raises(OptionError, match="stored as the values' own dtype, and this call stores torch.float16"):
        extract(net(), X, keep_module="body", dtype="float16", **options)
    with pytest.raises(OptionError, match="32 samples were extracted before, and these end inside of the batch"):
        extract(net(), list(X.split(20)), keep_module="body", **options)
    with pytest.raises(BrokenPromiseError, match="32 samples were extracted, and the data has 10"):
        extract(net(), X[:10], keep_module="body", **options)
    assert len(stacked(extract(net(), X, keep_module="body", **options))) == 50
    with fastrec.Recorder(net(), keep_op="tanh", sink=tmp_path / "other.h5") as rec:
        rec.log(X)
    with pytest.raises(OptionError, match="only goes on with what it wrote itself"):
        extract(net(), X, keep_op="tanh", to=tmp_path / "other.h5", progress=False)


class TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.T


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.more = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.more(x) if x.shape[0] > 1 else x


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: extract(len, X), "give a torch.nn.Module"),  # type: ignore[arg-type]
    "a number": (lambda: extract(net(), 3, keep_module="body"), "give a DataLoader, a data set"),
    "one batch as a dict": (lambda: extract(net(), {"x": X}, keep_module="body"), "give a DataLoader, a data set"),
    "a shuffled loader": (
        lambda: extract(net(), DataLoader(X, shuffle=True), keep_module="body"),  # type: ignore[arg-type]
        "would not be in the order of the data set",
    ),
    "no rows": (lambda: extract(TimeFirst(), X, keep_op="t"), r"is of shape \(4, 2\), and the batch has 2 samples"),
    "names of nothing": (lambda: extract(net(), [{"y": X}], keep_module="body"), "forward takes none of these"),
    "no tensors": (lambda: extract(net(), ["a", "b"], keep_module="body"), "has no tensor with a dimension"),
    "too few ids": (lambda: extract(net(), X, keep_module="body", sample_ids=["a"]), "has 1 ids, and the data has 50"),
    "no such column": (
        lambda: extract(net(), [{"x": X}], keep_module="body", sample_ids="id"),
        r"names no column of a batch, which is a dict of \['x'\]",
    ),
    "ids of a batch": (
        lambda: extract(net(), [X], keep_module="body", sample_ids=lambda batch: [1]),
        "a batch of 50 samples has 1 sample ids",
    ),
    "no data": (lambda: extract(net(), [], keep_module="body"), "got data without samples"),
    "a batch size": (lambda: extract(net(), X, keep_module="body", batch_size=0), "give a whole number from 1 up"),
    "a function": (lambda: extract(net(), X, keep_module="body", collate=3), "give a function"),  # type: ignore[arg-type]
    "preprocess": (lambda: extract(net(), X, keep_module="body", preprocess=len), "is for a folder of images"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_rows_is_refused(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(OptionError, match=message):
        call()


@pytest.mark.filterwarnings("ignore:keep_module")
def test_a_key_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(RecordKeyError, match="nothing that the predicates select appeared"):
        extract(net(), X, keep_module="bodi", progress=False)


@pytest.mark.filterwarnings("ignore:keep_module")
def test_passes_that_go_further_than_the_first_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[extract.__module__], "CHECK_EVERY", 3)
    batches = [X[:1], X[:1], X[1:4], X[:1]]
    with pytest.raises(BrokenPromiseError, match=r"kept values at \['layer'\], and a later one at \['layer', 'more'\]"):
        extract(Growing(), batches, keep_module=["layer", "more"], progress=False)
    whole = extract(Growing(), batches, keep_module=["layer", "more"], stop_early=False, progress=False)
    assert whole.rows("more", by="sample").sample_id == [2, 3, 4]


def test_the_bar_counts_samples(capsys: pytest.CaptureFixture[str]) -> None:
    extract(net(), X, keep_module="body", batch_size=10)
    assert "50/50" in capsys.readouterr().err
    extract(net(), X, keep_module="body", progress=False)
    assert capsys.readouterr().err == ""
