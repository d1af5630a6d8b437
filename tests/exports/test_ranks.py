"""What several processes recorded, in each format: the rank stands beside rows, steps and episodes."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import fastrec
from fastrec import Recorder, Recording
from fastrec.exports import export

FIELDS = {"observations": ":out", "actions": "action"}


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Ranks 0 and 3, of two episodes each with two steps."""
    model = nn.Tanh()
    for rank in (0, 3):
        monkeypatch.setenv("RANK", str(rank))
        with Recorder(model, keep_module=True, sink=f"{tmp_path}/run/", autoreset="same_step") as rec:
            for i in range(4):
                model(torch.full((1, 3), float(rank)))
                rec.step(reward=[1.0], terminated=[i % 2 == 1], truncated=[False], action=[float(i)])
    return fastrec.load(tmp_path / "run")


RANKS = [0] * 4 + [3] * 4


def test_numpy_and_safetensors(recording: Recording, tmp_path: Path) -> None:
    export(recording, tmp_path / "run.npz", "numpy")
    with np.load(tmp_path / "run.npz") as arrays:
        assert arrays["ranks/:out"].tolist() == RANKS and arrays["steps/rank"].tolist() == RANKS
    load_file = pytest.importorskip("safetensors.torch").load_file
    export(recording, tmp_path / "run.safetensors", "safetensors", by="sample")
    tensors = load_file(tmp_path / "run.safetensors")
    assert tensors["ranks/:out"].tolist() == RANKS and tensors["steps/rank"].tolist() == RANKS


def test_one_process_has_none(tmp_path: Path) -> None:
    export(fastrec.record(nn.Tanh(), torch.ones(2), keep_module=True), tmp_path / "one.npz", "numpy")
    with np.load(tmp_path / "one.npz") as arrays:
        assert set(arrays) == {":out"}


def test_huggingface(recording: Recording, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export(recording, tmp_path / "run_hf", "huggingface", keys={":out": "out"})
    assert list(datasets.load_from_disk(str(tmp_path / "run_hf"))["rank"]) == RANKS


def test_episodes_have_their_rank(recording: Recording, tmp_path: Path) -> None:
    for format, name in (("d4rl", "d.h5"), ("minari", "minari"), ("robomimic", "r.h5")):
        export(recording, tmp_path / name, format, **FIELDS)
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["infos/rank"][:].tolist() == RANKS
    with h5py.File(tmp_path / "minari" / "data" / "main_data.hdf5") as file:
        assert [int(file[f"episode_{i}"].attrs["rank"]) for i in range(4)] == [0, 0, 3, 3]
    with h5py.File(tmp_path / "r.h5") as file:
        assert [int(file[f"data/demo_{i}"].attrs["rank"]) for i in range(4)] == [0, 0, 3, 3]
