"""Tensors in files are read when somebody asks, and from this very file alone."""

import os
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


def test_any_changed_byte_of_a_tensor_is_an_error(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "pass.h5").create(overwrite=False)
    lazy = {
        dtype: file.put(f"values/{i}", torch.arange(6).to(dtype).reshape(2, 3))
        for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.bool, torch.complex64))
    }
    file.finish()
    with h5py.File(tmp_path / "pass.h5") as stored:
        offsets = {tensor.name: stored[tensor.name].id.get_offset() for tensor in lazy.values()}
    for dtype, tensor in lazy.items():
        assert torch.equal(tensor.read(), torch.arange(6).to(dtype).reshape(2, 3))
        data = bytearray((tmp_path / "pass.h5").read_bytes())
        data[offsets[tensor.name] + 1] ^= 1
        (tmp_path / "pass.h5").write_bytes(data)
        with pytest.raises(DamagedFileError, match=f"is damaged: {tensor.name} is not what was written"):
            tensor.read()


def test_a_file_of_an_earlier_version_has_no_checksums(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "pass.h5", "w") as file:
        file["values/0"] = np.arange(3.0)
    assert TensorFile(tmp_path / "pass.h5").array("values/0").tolist() == [0, 1, 2]


def test_a_fifo_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pass.h5")
    with pytest.raises(DamagedFileError, match="not a regular file"):
        TensorFile(tmp_path / "pass.h5").array("structure")


def test_a_link_under_the_name_of_an_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "pass.h5.partial").symlink_to("precious")
    TensorFile(tmp_path / "pass.h5").create(overwrite=False).abandon()
    assert (tmp_path / "precious").read_text() == "precious"
