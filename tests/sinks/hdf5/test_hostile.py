"""Files that somebody made to harm, checksums and all: a typed error or values, never a crash, never much memory."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fastrec
from fastrec import CaptureSpec, FastrecError, Recorder
from fastrec._errors import DamagedFileError
from fastrec.files import verify
from fastrec.sinks.hdf5.layout import TABLES

NASTY = [
    *(None, True, -1, 0, 1, 7, 2**31, 2**62, -(2**62), 2**70, 1e308, 0.5, "", "x", "../../etc/passwd", [], {}, [[]]),
    *("O", "object", "V9999999999", "<U99999999", "M8[ns]", "float32", "quint8", "bits8", "load", "Tensor"),
    *([-1], [2**40], [2**40, 2**40], [0], [["a", "O", []]], [["a", "<f8", [2**40]]], {"x": 1}, "__reduce__", "meta"),
    *("cuda:0", [[1, 2, "x"]], [[99, 0, "x"]], ["a"] * 40, [1] * 70),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    capture = CaptureSpec(transform=lambda t: t.sum(), dtype=torch.bfloat16)
    options: Any = {"keep_op": True, "keep_module": True, "capture": capture, "autoreset": "next_step"}
    with Recorder(model, sink=path, history_size=4, **options) as rec:
        for i in range(6):
            rec.log(torch.full((2, 3), float(i)), sample_id=f"s{i}")
            rec.step(reward=[1.0, 2.0], terminated=[i == 3, False], truncated=[False, False])
    return path.read_bytes()


def with_checksum(content: Any) -> bytes:
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def index_in(whole: bytes) -> tuple[dict[str, Any], bytes]:
    length, _ = struct.unpack("<Q8s", whole[-16:])
    return json.loads(whole[-16 - length : -16][9:]), whole[: -16 - length]


def with_index(index: dict[str, Any], body: bytes) -> bytes:
    entry = with_checksum(index)
    return body + entry + struct.pack("<Q8s", len(entry), b"fastrec")


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in JSON, containers included."""
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def with_log(whole: bytes, change: Callable[[list[Any]], list[Any]]) -> bytes:
    """The file with another log, which lies behind its end."""
    index, body = index_in(whole)
    log = index["sets"]["log"]
    text = b"".join(body[at : at + log["chunk_rows"]] for at in log["offsets"])[: log["rows"]]
    lines = change([json.loads(line[9:]) for line in text.splitlines()])
    new_log = b"".join(map(with_checksum, lines))
    index["sets"]["log"] = {"row_bytes": 1, "rows": len(new_log), "chunk_rows": len(new_log), "offsets": [len(body)]}
    return with_index(index, body + new_log)


def read_all(path: Path) -> None:
    recording = fastrec.load(path)
    for record in recording:
        _ = record.activation, record.transformed_activation, repr(record), record.spec
        ctx = record.ctx
        _ = ctx.sample_id, ctx.recent_ops, ctx.recent_events, ctx.module_stack, ctx.step, ctx.tensor_dtype
    for key in recording.sites:
        recording.stack(f"site:{key}")
        recording.rows(f"site:{key}", by="sample")[[0, -1]]
    _ = recording.summary(), recording.to_pandas(), recording.steps.columns, recording.halted, recording.episodes()


def check(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for use in (read_all, verify):
        try:
            use(path)
        except FastrecError:
            pass


ONE_FOLDER = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ONE_FOLDER
@given(data=st.data())
def test_any_log_is_an_error_or_read(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    def change(lines: list[Any]) -> list[Any]:
        position = data.draw(st.integers(0, len(lines) - 1))
        path = data.draw(st.sampled_from(leaves(lines[position])))
        return [
            *lines[:position],
            changed(lines[position], path, data.draw(st.sampled_from(NASTY))),
            *lines[position + 1 :],
        ]

    check(tmp_path / "run.h5", with_log(whole, change))


@ONE_FOLDER
@given(data=st.data())
def test_any_index_is_an_error_or_read(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    index, body = index_in(whole)
    path = data.draw(st.sampled_from(leaves(index)))
    check(tmp_path / "run.h5", with_index(changed(index, path, data.draw(st.sampled_from(NASTY))), body))


@ONE_FOLDER
@given(data=st.data())
def test_any_row_of_a_table_is_an_error_or_read(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    index, body = index_in(whole)
    name = data.draw(st.sampled_from(sorted(TABLES)))
    extent, dtype = index["sets"][name], TABLES[name]
    row = np.frombuffer(body, dtype, 1, extent["offsets"][0]).copy()
    field = data.draw(st.sampled_from(dtype.names or ()))
    info = np.iinfo(dtype[field]) if dtype[field].kind in "iu" else None
    extremes = [float("nan"), -1.0, 1e308] if info is None else [info.min, info.max, 0, 1, 2, 99, info.max // 8]
    row[field] = data.draw(st.sampled_from(extremes))
    position = extent["offsets"][0] + data.draw(st.integers(0, extent["rows"] - 1)) * dtype.itemsize
    check(tmp_path / "run.h5", body[:position] + row.tobytes() + body[position + dtype.itemsize :] + whole[len(body) :])


@ONE_FOLDER
@given(data=st.data())
def test_any_bytes_are_an_error_or_read(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        # Without the mark at the end it would be up to HDF5, of which there is a test of its own.
        damaged[data.draw(st.integers(0, len(damaged) - 9))] = data.draw(st.integers(0, 255))
    check(tmp_path / "run.h5", bytes(damaged))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("session", "header", "x"), ("session", "header", None), ("site", "frames", []), ("variant", "stack_passes", [])],
)
def test_a_log_whose_parts_do_not_fit_together_is_an_error(
    whole: bytes, tmp_path: Path, kind: str, field: str, value: Any
) -> None:
    def change(lines: list[Any]) -> list[Any]:
        position = next(i for i, line in enumerate(lines) if line[0] == kind and line[2].get(field))
        return [*lines[:position], changed(lines[position], (2, field), value), *lines[position + 1 :]]

    (tmp_path / "run.h5").write_bytes(with_log(whole, change))
    with pytest.raises(DamagedFileError):
        read_all(tmp_path / "run.h5")


def test_deep_json_is_an_error(whole: bytes, tmp_path: Path) -> None:
    index, body = index_in(whole)
    log = index["sets"]["log"]
    deep = b"[" * 100_000 + b"]" * 100_000
    for line in (deep, b'["session",0,{"header":' + deep + b"}]"):
        text = b"%08x %s\n" % (zlib.crc32(line), line)
        log.update(row_bytes=1, rows=len(text), chunk_rows=len(text), offsets=[len(body)])
        (tmp_path / "run.h5").write_bytes(with_index(index, body + text))
        with pytest.raises(DamagedFileError):
            fastrec.load(tmp_path / "run.h5")


def test_rows_that_lie_in_the_same_place_take_no_more_memory_than_the_file(whole: bytes, tmp_path: Path) -> None:
    index, body = index_in(whole)
    name = next(name for name in index["sets"] if name.startswith("data/"))
    extent = index["sets"][name]
    extent.update(rows=extent["rows"] * 10_000, offsets=extent["offsets"] * 10_000)
    (tmp_path / "run.h5").write_bytes(with_index(index, body))
    with pytest.raises(DamagedFileError, match="more room than the file has"):
        fastrec.load(tmp_path / "run.h5")


def test_a_hostile_file_of_hdf5_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(format="fastrec", version=np.int64(2**60), segment="x", run=b"\xff")
        file["log"] = np.zeros(3)
    with pytest.raises(FastrecError):
        fastrec.load(path)
