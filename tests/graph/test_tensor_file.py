"""Tensors in files are read when somebody asks, and from this very file alone."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec import FastrecError
from fastrec._errors import DamagedFileError
from fastrec.graph import load_history, log_forward_pass
from fastrec.graph.tensor_file import LazyTensor, TensorFile


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.tensor(True),
        torch.zeros(0, 3, dtype=torch.int16),
        torch.arange(5).to(torch.bfloat16),
        torch.tensor(2.5, dtype=torch.float8_e5m2),
        torch.arange(3).to(torch.complex64).conj(),
        torch.arange(3.0)._neg_view(),
        torch.ones(2, requires_grad=True) * 2,
    ],
    ids=lambda value: f"{value.dtype}-{tuple(value.shape)}",
)
def test_a_tensor_is_read_as_it_was_written(tmp_path: Path, value: Tensor) -> None:
    file = TensorFile(tmp_path / "t.h5").create(overwrite=False)
    lazy = file.put("group/value", value)
    file.finish()
    assert (lazy.shape, lazy.dtype, lazy.nbytes) == (value.shape, value.dtype, value.numel() * value.element_size())
    read = lazy.read()
    assert read.dtype == value.dtype and read.shape == value.shape
    assert torch.equal(read.to(torch.complex64), value.detach().to(torch.complex64))


def test_a_file_that_is_abandoned_leaves_nothing(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "t.h5").create(overwrite=False)
    file.put("value", torch.ones(2))
    file.abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2,), torch.int64, "value holds torch.float32 values, but the file's structure says torch.int64"),
        ((3,), torch.float32, r"value holds 2 values, but the file's structure says that its shape is \(3,\)"),
        ((2,), torch.bfloat16, "value"),
    ],
)
def test_a_tensor_that_is_not_what_the_structure_says_is_damage(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype, message: str
) -> None:
    file = TensorFile(tmp_path / "t.h5").create(overwrite=False)
    file.put("value", torch.ones(2))
    file.finish()
    with pytest.raises(DamagedFileError, match=message):
        LazyTensor(file, "value", shape, dtype).read()


def test_values_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "pass.h5"
    log_forward_pass(nn.Linear(4, 3), torch.randn(2, 4)).save(path)
    operation = load_history(path).operations[1]
    assert isinstance(operation.raw.stored_value, LazyTensor) and operation.has_saved_activations
    taken = operation.materialize_activation()
    assert operation.activation is taken and not isinstance(operation.raw.stored_value, LazyTensor)
    lazy = load_history(path).operations[0]
    path.unlink()
    with pytest.raises(FastrecError, match="pass.h5"):
        lazy.materialize_activation()


def test_a_file_reads_nothing_outside_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "pass.h5"
    log_forward_pass(nn.ReLU(), torch.ones(2)).save(path)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones(2, np.float32)
    with h5py.File(path, "r+") as file:
        del file["values/1"]
        file["values/1"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
    with pytest.raises(FastrecError, match="is not a history, or not a complete one"):
        load_history(path)["relu_1"].activation  # noqa: B018


def test_what_hdf5_stumbles_over_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pass.h5"
    log_forward_pass(nn.ReLU(), torch.rand(2)).save(path)

    def stumble(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to synchronously check link existence (wrong B-tree signature)")

    monkeypatch.setattr(h5py.Group, "get", stumble)
    with pytest.raises(DamagedFileError, match="wrong B-tree signature"):
        load_history(path)


def test_a_virtual_data_set_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones(2, np.float32)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        layout = h5py.VirtualLayout((2,), np.float32)
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (2,))
        file.create_virtual_dataset("value", layout)
    with pytest.raises(DamagedFileError, match="it does not contain value"):
        TensorFile(tmp_path / "t.h5").array("value")
