"""Parquet and Zarr, read back by pyarrow and zarr: the values, and what tells the rows apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastrec
from fastrec import CaptureSpec, FastrecError, Recorder, Recording
from fastrec._cli import main
from fastrec._errors import MissingExtraError, OptionError, RaggedError, RecordingExistsError, RecordKeyError
from fastrec.exports import _parquet, _zarr, export
from tests.exports.rollout import rollout

FORMATS = ["parquet", "zarr"]


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("pyarrow" if request.param == "parquet" else "zarr")
    return str(request.param)


def read_back(path: Path, format: str) -> dict[str, np.ndarray[Any, Any]]:
    """All columns as arrays, by the tool's own code."""
    if format == "zarr":
        import zarr

        group = zarr.open_group(path, mode="r")
        arrays = {name: array for name, array in group.arrays()}
        assert all(array.metadata.zarr_format == 3 for array in arrays.values())
        return {
            name: np.array(array.attrs["names"], object)[array[:]] if "names" in array.attrs else array[:]
            for name, array in arrays.items()
        }
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return {name: plain(table[name].combine_chunks(), pyarrow) for name in table.column_names}


def plain(column: Any, pyarrow: Any) -> np.ndarray[Any, Any]:
    if isinstance(column.type, pyarrow.FixedShapeTensorType):
        return column.to_numpy_ndarray()  # type: ignore[no-any-return]
    if pyarrow.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)  # type: ignore[no-any-return]
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("where", ["ram", "file"])
def test_values_and_labels_are_those_that_were_recorded(format: str, where: str, tmp_path: Path) -> None:
    recording = rollout(None if where == "ram" else tmp_path / "run.h5")
    export(recording, tmp_path / f"out.{format}", format, keys={"head": "head", "tanh_1": "hidden", "reward": "reward"})
    columns = read_back(tmp_path / f"out.{format}", format)
    assert set(columns) == {"pass_index", "step", "head", "hidden", "reward"}
    assert np.array_equal(columns["head"], recording.to_numpy("head"))
    assert np.array_equal(columns["hidden"], recording.to_numpy("tanh_1")) and columns["hidden"].dtype == np.float32
    assert np.array_equal(columns["reward"], recording.steps["reward"])
    assert columns["pass_index"].tolist() == columns["step"].tolist() == list(range(12))


def test_samples_are_rows_with_their_environment(format: str, tmp_path: Path) -> None:
    recording = rollout()
    export(recording, tmp_path / f"out.{format}", format, keys={"head": "head", "reward": "reward"}, by="sample")
    columns = read_back(tmp_path / f"out.{format}", format)
    assert columns["env"].tolist() == [0, 1] * 12 and columns["head"].shape == (24, 2)
    assert np.array_equal(columns["head"].reshape(12, 2, 2), recording.to_numpy("head"))
    assert np.array_equal(columns["reward"].reshape(12, 2), recording.steps["reward"])


def test_rows_of_several_processes_have_their_rank(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Tanh()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        with Recorder(model, keep_module=True, sink=f"{tmp_path}/run/") as rec:
            for name in ("train", "eval"):
                with rec.phase(name):
                    model(torch.full((2, 3), float(rank)))
                    rec.step(reward=1.0)
    to = tmp_path / f"out.{format}"
    assert main(["export", str(tmp_path / "run"), "--to", str(to), "-k", ":out=out"]) == 0
    columns = read_back(to, format)
    assert columns["rank"].tolist() == [0, 0, 1, 1] and columns["step"].tolist() == [0] * 4
    assert columns["phase"].tolist() == ["train", "eval"] * 2
    assert np.array_equal(columns["out"], fastrec.load(tmp_path / "run").to_numpy(":out"))


DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 2)], ids=str)
def test_dtypes_and_shapes(format: str, dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    recording = kept(*[(torch.randn(shape) * 3).to(dtype) for _ in range(3)])
    export(recording, tmp_path / f"out.{format}", format, keys={":out": "x"})
    values = read_back(tmp_path / f"out.{format}", format)["x"]
    wanted = recording.to_numpy(":out")
    if format == "parquet" and dtype is torch.bool and len(shape) > 1:
        wanted = wanted.view(np.uint8)
    assert values.dtype == wanted.dtype and np.array_equal(values, wanted)


def kept(*values: torch.Tensor, sample_ids: Any = None) -> Recording:
    model = nn.Identity()
    with Recorder(model, keep_module=True) as rec:
        for i, value in enumerate(values):
            rec.log(value, sample_id=None if sample_ids is None else sample_ids[i])
    return rec.recording


@pytest.mark.parametrize("sample_ids", [["b", "a", "b"], [7, 5, 9]])
def test_sample_ids_come_along(format: str, sample_ids: list[Any], tmp_path: Path) -> None:
    recording = kept(*torch.zeros(3, 2), sample_ids=sample_ids)
    export(recording, tmp_path / f"out.{format}", format, keys={":out": "x"})
    assert read_back(tmp_path / f"out.{format}", format)["sample_id"].tolist() == sample_ids


def test_many_stretches_are_one_table(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parquet, "ROW_GROUP_BYTES", 4000)
    monkeypatch.setattr(_zarr, "CHUNK_BYTES", 400)
    monkeypatch.setattr(_zarr, "SHARD_BYTES", 4000)
    recording = kept(*torch.randn(31, 10, 10))
    export(recording, tmp_path / f"out.{format}", format, keys={":out": "x"})
    assert np.array_equal(read_back(tmp_path / f"out.{format}", format)["x"], recording.to_numpy(":out"))
    if format == "zarr":
        import zarr

        array = zarr.open_group(tmp_path / "out.zarr")["x"]
        assert (array.chunks, array.shards) == ((1, 10, 10), (10, 10, 10))
        files = [path for path in (tmp_path / "out.zarr" / "x").rglob("*") if path.is_file()]
        assert len(files) == 4 + 1  # a file for each shard, and one that describes them


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(_parquet, "ROW_GROUP_BYTES", 4000)
    monkeypatch.setattr(_parquet, "FILE_BYTES", 9000)
    recording = kept(*torch.randn(50, 100))
    export(recording, tmp_path / "out", "parquet", keys={":out": "x"}, compression="snappy")
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) > 1
    columns = read_back(tmp_path / "out", "parquet")
    assert np.array_equal(columns["x"], recording.to_numpy(":out")) and columns["pass_index"].tolist() == list(
        range(50)
    )


def test_all_sites_are_columns_by_default(format: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    recording = fastrec.record(model, torch.ones(4, 3), keep_op=True)
    export(recording, tmp_path / f"out.{format}", format)
    names = {"0/linear", "1/tanh"} if format == "parquet" else {"0.linear", "1.tanh"}
    assert set(read_back(tmp_path / f"out.{format}", format)) == {"pass_index", "step"} | names


def test_what_does_not_fit_is_refused_and_leaves_nothing(format: str, tmp_path: Path) -> None:
    recording = rollout()
    to = tmp_path / f"out.{format}"
    wrong: list[tuple[type[FastrecError], str, dict[str, Any]]] = [
        (OptionError, "can't be named 'step'.*keys={'head': 'another'}", {"keys": {"head": "step"}}),
        (RecordKeyError, "give one too", {"keys": ["reward"]}),
        (RecordKeyError, "haed", {"keys": ["haed"]}),
        (OptionError, "has no option 'compresion'", {"compresion": "zstd"}),
    ]
    if format == "parquet":
        wrong.append((OptionError, "compression='rar': give one of 'zstd', ", {"compression": "rar"}))
    for kind, text, options in wrong:
        with pytest.raises(kind, match=text):
            export(recording, to, format, **options)
        assert list(tmp_path.iterdir()) == []
    export(recording, to, format, keys={"head": "another"})
    with pytest.raises(RecordingExistsError, match="exists; give another path"):
        export(recording, to, format, keys=["head"])
    assert list(tmp_path.iterdir()) == [to]


def test_keys_that_fired_in_other_passes_are_refused(format: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with Recorder(model, keep_module=["0", "1"]) as rec:
        model(torch.ones(2, 3))
        model[0](torch.ones(2, 3))
    with pytest.raises(RaggedError, match="don't stand side by side"):
        export(rec.recording, tmp_path / f"out.{format}", format)


def test_parquet_has_no_complex_numbers(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    recording = fastrec.record(nn.Linear(3, 5), torch.ones(7, 3), keep_op=True,
                               capture=CaptureSpec(dtype=torch.complex64))  # fmt: skip
    with pytest.raises(OptionError, match="'/linear' is complex64, for which Arrow has no type"):
        export(recording, tmp_path / "x.parquet", "parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("format", "package"), [("parquet", "pyarrow"), ("zarr", "zarr")])
def test_the_extra_is_named(format: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"exporting to {format} needs {package}.*\[{format}\]"):
        export(rollout(), tmp_path / f"out.{format}", format)
