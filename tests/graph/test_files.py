"""Histories in files: complete, streamed, harmless, and the same as ever."""

import gzip
import os
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pandas
import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import FastrecError
from fastrec._errors import DamagedFileError
from fastrec.graph import load_history, log_forward_pass, validate_history
from fastrec.graph.files import OpaqueArgument, decoded_template, encoded_template
from tests.graph.models import StoredModel


class Varied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.lstm = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LSTM(4, 3)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Any:
        for _ in range(2):
            x = nn.functional.dropout(self.norm(self.linear(x)))
            x.view(-1)[0] = 2.0
            x = x * self.scale + torch.tensor(1.5)
        if x.sum() > -1e9:
            x = x[..., :4].to(torch.bfloat16).to(torch.float32)
        return {"x": self.lstm(x)[0], "z": x.to(torch.complex64).conj(), "n": x.new_zeros(0, 3), "i": x.argmax()}


TABLES: list[Any] = ["operations", "layers", "modules", "parameters", "buffers"]


def test_a_loaded_history_says_the_same(tmp_path: Path) -> None:
    history = log_forward_pass(Varied(), torch.randn(5, 4), random_seed=1)
    history.save(tmp_path / "pass.h5")
    loaded = load_history(tmp_path / "pass.h5")
    assert str(loaded) == str(history)
    for table in TABLES:
        pandas.testing.assert_frame_equal(loaded.to_pandas(table), history.to_pandas(table))
    assert list(loaded.conditions) == list(history.conditions) and len(history.conditions) == 1
    for saved, read in zip(history.operations, loaded.operations, strict=True):
        assert saved.activation is not None and read.activation is not None
        assert torch.equal(saved.activation, read.activation) and saved.activation.dtype == read.activation.dtype
        assert [(f.file, f.line, f.function) for f in saved.func_call_stack] == [
            (f.file, f.line, f.function) for f in read.func_call_stack
        ]
        assert saved.func_position_args_non_tensor == read.func_position_args_non_tensor
        assert saved.func_rng_states.keys() == read.func_rng_states.keys()
        assert read.func_applied is None
    assert not loaded.diff(history) and loaded.diff(history).values == ()
    assert loaded.profile()[0].name == history.profile()[0].name
    loaded.save(tmp_path / "again.h5")
    assert str(load_history(tmp_path / "again.h5")) == str(history)


@pytest.fixture
def early_file(tmp_path: Path) -> Path:
    """A history of StoredModel that an early version wrote."""
    path = tmp_path / "history.h5"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "data" / "history.h5.gz").read_bytes()))
    return path


def test_a_history_that_an_early_version_wrote_is_read(early_file: Path) -> None:
    history = load_history(early_file)
    assert history.layer_labels == [
        *("input_1", "buffer_1", "add_1_1", "linear_1_2:1", "buffer_2", "mul_1_3:1", "linear_1_2:2", "mul_1_3:2"),
        *("dropout_1_4", "tanh_1_5", "sub_1_6", "getitem_1_7", "mul_2_8", "tensor_1_9", "add_2_10", "eye_1_11"),
        *("einsum_1_12", "gt_1_13", "mul_3_14", "sum_1_15", "gt_2_16", "getitem_2_17", "to_1_18", "to_2_19"),
        *("split_1_20", "split_2_21", "t_1_22", "matmul_1_23", "to_3_25", "conj_1_26", "mul_4_27", "newzeros_1_28"),
        *("output_1", "output_2", "output_3", "output_4", "output_5"),
    ]
    ops = {op.layer_label_w_pass.removesuffix(":1"): op for op in history.operations}
    assert ops["add_2_10"].parent_layers == ["sub_1_6", "mul_2_8", "tensor_1_9"]  # a write through a view
    torch.testing.assert_close(ops["add_2_10"].creation_args[0], ops["add_2_10"].activation - 1.5)
    assert ops["getitem_2_17"].func_position_args_non_tensor == [(Ellipsis, slice(None, 3, None))]
    assert ops["to_2_19"].creation_kwargs == {"dtype": torch.float32}
    assert ops["to_1_18"].activation.dtype == torch.bfloat16
    assert ops["mul_4_27"].creation_args[1] == 2j
    assert ops["matmul_1_23"].raw.call.autocast == (("cpu", torch.bfloat16),)
    assert "functorch transform" in ops["sin_1_24"].not_saved_because
    assert ops["split_2_21"].iterable_output_index == 1
    assert torch.equal(ops["to_2_19"].gradient, torch.ones(2, 3))
    assert torch.equal(ops["einsum_1_12"].transformed_activation, ops["einsum_1_12"].activation.flatten()[:1])
    assert ops["dropout_1_4"].func_rng_states.keys() == {"cpu"}
    assert ops["linear_1_2:2"].containing_module_origin == "block:2"
    assert [location.function for location in ops["linear_1_2:2"].func_call_stack] == ["forward", "forward"]
    assert history.parameters["unused"].dtype == torch.float64 and history.total_params == 11
    assert history.buffers["count"].written_by == ("add_1_1",)
    (condition,) = history.conditions
    assert (condition.kind, condition.branch, condition.layer_label) == ("if", "then", "gt_2_16")
    assert ops["to_1_18"].conditional_branches == [("gt_2_16", "then")]
    record = fastrec.record(StoredModel(), torch.arange(6.0).reshape(2, 3), keep_op="tanhshrink")[0]
    assert history.op_for(record).layer_label == "sub_1_6"


def test_a_history_is_written_as_an_early_version_wrote_it(early_file: Path, tmp_path: Path) -> None:
    load_history(early_file).save(tmp_path / "again.h5")
    with h5py.File(early_file) as early, h5py.File(tmp_path / "again.h5") as file:
        names: list[str] = []
        early.visit(names.append)
        assert "structure" in names and "others/0" in names
        for name in names:
            if isinstance(early[name], h5py.Dataset):
                assert np.array_equal(early[name][()], file[name][()]), name


def test_values_stream_to_a_file_while_the_pass_runs(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            seen.append((tmp_path / "pass.h5.partial").exists())
            return y + 1

    path, x = tmp_path / "pass.h5", torch.randn(3)
    history = log_forward_pass(Looks(), x, save_activations_to=path, keep_activations_in_memory=False)
    assert seen == [True] and os.listdir(tmp_path) == ["pass.h5"]
    assert not any(isinstance(op.raw.stored_value, Tensor) for op in history.operations)
    assert torch.equal(history["exp_1"].activation, x.exp())  # type: ignore[arg-type]
    assert validate_history(history)
    assert torch.equal(load_history(path)["add_1"].activation, x.exp() + 1)  # type: ignore[arg-type]
    assert history.tensor_fsize_saved == 4 * 12


@pytest.mark.parametrize("select", ["all", ["linear"]])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_selection_is_streamed(tmp_path: Path, select: Any, in_memory: bool) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4)
    options: dict[str, Any] = {"layers_to_save": select, "keep_activations_in_memory": in_memory}
    history = log_forward_pass(model, x, save_activations_to=tmp_path / "a.h5", **options)
    called = log_forward_pass(model, call=lambda: model(x), save_activations_to=tmp_path / "b.h5", **options)
    for path, logged in (("a.h5", history), ("b.h5", called)):
        loaded = load_history(tmp_path / path)
        assert loaded.num_tensors_saved == logged.num_tensors_saved
        assert torch.equal(loaded["linear_1"].activation, model[0](x))  # type: ignore[arg-type]
        assert isinstance(logged["linear_1"].raw.stored_value, Tensor) is in_memory  # type: ignore[union-attr]


def test_a_pass_that_fails_leaves_no_file(tmp_path: Path) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.exp()
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        log_forward_pass(Fails(), torch.ones(2), save_activations_to=tmp_path / "pass.h5")
    assert os.listdir(tmp_path) == []


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, x, path = nn.ReLU(), torch.ones(2), tmp_path / "pass.h5"
    with pytest.raises(FastrecError, match="needs a file: give save_activations_to"):
        log_forward_pass(model, x, keep_activations_in_memory=False)
    with pytest.raises(FastrecError, match="can only be kept in memory; leave out keep_activations_in_memory=False"):
        log_forward_pass(model, x, save_activations_to=path, keep_activations_in_memory=False, train_mode=True)
    history = log_forward_pass(model, x)
    history.save(path)
    with pytest.raises(FileExistsError, match="give another path, or overwrite=True"):
        history.save(path)
    history.save(path, overwrite=True)
    loaded = load_history(path)
    with pytest.raises(FastrecError, match="does not hold the model"):
        loaded.save_new_activations(x)
    with pytest.raises(FastrecError, match="a history from a file has none"):
        validate_history(loaded)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_history(tmp_path / "other.h5")


def test_gradients_and_transformed_values_are_saved(tmp_path: Path) -> None:
    x = torch.randn(3, requires_grad=True)
    history = log_forward_pass(nn.Tanh(), x, save_gradients=True, train_mode=True, activation_postfunc=torch.mean)
    history["tanh_1"].activation.sum().backward()  # type: ignore[union-attr]
    history.save(tmp_path / "pass.h5")
    loaded = load_history(tmp_path / "pass.h5")["tanh_1"]
    assert torch.equal(loaded.transformed_activation, torch.tanh(x).mean())  # type: ignore[union-attr]


class Evil:
    """Would run something if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("echo run",))

    def __repr__(self) -> str:
        return "Evil()"


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Takes(nn.Module):
        def forward(self, x: Tensor, evil: object) -> Tensor:
            return x.exp()

    path = tmp_path / "pass.h5"
    log_forward_pass(Takes(), (torch.ones(2), Evil())).save(path)
    assert b"posix" not in path.read_bytes() and b"pickle" not in path.read_bytes()
    assert decoded_template(encoded_template(Evil(), str), str) == OpaqueArgument("Evil()")
    for name in ("ops", "load", "__builtins__", "os.system"):
        with pytest.raises(FastrecError, match="an argument in the file is neither plain data nor a tensor"):
            decoded_template(["torch", name], str)


def damaged(path: Path, change: Any) -> None:
    """Change the structure in a file."""
    with h5py.File(path, "r+") as file:
        structure = msgspec.msgpack.decode(file["structure"][()].tobytes())
        change(structure)
        del file["structure"]
        file["structure"] = np.frombuffer(msgspec.msgpack.encode(structure), np.uint8)


CHANGES: dict[str, Any] = {
    "another format": lambda structure: structure.update(format="fastrec history 9"),
    "parents from later": lambda structure: structure["ops"][0].__setitem__(2, [1]),
    "calls that are not there": lambda structure: structure["ops"][1].__setitem__(1, 99),
    "an unknown dtype": lambda structure: structure["ops"][1].__setitem__(4, "load"),
    "arguments that are none": lambda structure: structure["calls"][1].__setitem__(4, ["os", "system"]),
    "fewer fields": lambda structure: structure.pop("seed"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_does_not_hold_together_is_refused(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "pass.h5"
    log_forward_pass(nn.ReLU(), torch.ones(2)).save(path)
    damaged(path, change)
    with pytest.raises(FastrecError):
        load_history(path)


@pytest.mark.parametrize("content", [b"", b"no file of this kind", b"\x89HDF\r\n\x1a\n"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pass.h5"
    path.write_bytes(content)
    with pytest.raises(FastrecError, match="is not a history"):
        load_history(path)


def test_a_structure_with_wrong_bytes_is_damaged_or_reads_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pass.h5"
    log_forward_pass(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.rand(2, 3)).save(path)
    with h5py.File(path) as file:
        right = file["structure"][()]
    places = np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        wrong = right.copy()
        for place in places.integers(len(wrong), size=3):
            wrong[place] = places.integers(256)
        with h5py.File(path, "r+") as file:
            file["structure"][()] = wrong
        try:
            history = load_history(path)
            str(history)
            [operation.activation for operation in history.operations]
            history.to_pandas()
        except DamagedFileError:
            refused += 1
    assert refused > 20


def test_a_stream_does_not_write_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pass.h5"
    path.write_text("mine")
    with pytest.raises(FastrecError, match="exists; give another path, or remove it first"):
        log_forward_pass(nn.ReLU(), torch.rand(2), save_activations_to=path)
    assert path.read_text() == "mine"
