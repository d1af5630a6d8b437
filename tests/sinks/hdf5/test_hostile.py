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


def signed(told: Any) -> bytes:
    text = json.dumps(told).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def map_in(whole: bytes) -> tuple[dict[str, Any], bytes]:
    length, _ = struct.unpack("<Q8s", whole[-16:])
    return json.loads(whole[-16 - length : -16][9:]), whole[: -16 - length]


def with_map(told: dict[str, Any], body: bytes) -> bytes:
    entry = signed(told)
    return body + entry + struct.pack("<Q8s", len(entry), b"fastrec")


def leaves(told: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in JSON, containers included."""
    children = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


def changed(told: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(told))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def with_log(whole: bytes, change: Callable[[list[Any]], list[Any]]) -> bytes:
    """The file with another log, which lies behind its end."""
    told, body = map_in(whole)
    log = told["sets"]["log"]
    text = b"".join(body[at : at + log["chunk_rows"]] for at in log["offsets"])[: log["rows"]]
    lines = change([json.loads(line[9:]) for line in text.splitlines()])
    made = b"".join(map(signed, lines))
    told["sets"]["log"] = {"row_bytes": 1, "rows": len(made), "chunk_rows": len(made), "offsets": [len(body)]}
    return with_map(told, body + made)


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
def test_any_log_is_told_or_read(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    def change(lines: list[Any]) -> list[Any]:
        at = data.draw(st.integers(0, len(lines) - 1))
        path = data.draw(st.sampled_from(leaves(lines[at])))
        return [*lines[:at], changed(lines[at], path, data.draw(st.sampled_from(NASTY))), *lines[at + 1 :]]

    check(tmp_path / "run.h5", with_log(whole, change))


@ONE_FOLDER
@given(data=st.data())
def test_any_map_is_told_or_read(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    told, body = map_in(whole)
    path = data.draw(st.sampled_from(leaves(told)))
    check(tmp_path / "run.h5", with_map(changed(told, path, data.draw(st.sampled_from(NASTY))), body))


@ONE_FOLDER
@given(data=st.data())
def test_any_row_of_a_table_is_told_or_read(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    told, body = map_in(whole)
    name = data.draw(st.sampled_from(sorted(TABLES)))
    extent, dtype = told["sets"][name], TABLES[name]
    row = np.frombuffer(body, dtype, 1, extent["offsets"][0]).copy()
    field = data.draw(st.sampled_from(dtype.names or ()))
    info = np.iinfo(dtype[field]) if dtype[field].kind in "iu" else None
    extremes = [float("nan"), -1.0, 1e308] if info is None else [info.min, info.max, 0, 1, 2, 99, info.max // 8]
    row[field] = data.draw(st.sampled_from(extremes))
    at = extent["offsets"][0] + data.draw(st.integers(0, extent["rows"] - 1)) * dtype.itemsize
    check(tmp_path / "run.h5", body[:at] + row.tobytes() + body[at + dtype.itemsize :] + whole[len(body) :])


@ONE_FOLDER
@given(data=st.data())
def test_any_bytes_are_told_or_read(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    made = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        # Without the mark at the end it would be up to HDF5, of which there is a test of its own.
        made[data.draw(st.integers(0, len(made) - 9))] = data.draw(st.integers(0, 255))
    check(tmp_path / "run.h5", bytes(made))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("session", "header", "x"), ("session", "header", None), ("site", "frames", []), ("variant", "stack_passes", [])],
)
def test_a_log_whose_parts_do_not_fit_together_is_told(
    whole: bytes, tmp_path: Path, kind: str, field: str, value: Any
) -> None:
    def change(lines: list[Any]) -> list[Any]:
        at = next(i for i, line in enumerate(lines) if line[0] == kind and line[2].get(field))
        return [*lines[:at], changed(lines[at], (2, field), value), *lines[at + 1 :]]

    (tmp_path / "run.h5").write_bytes(with_log(whole, change))
    with pytest.raises(DamagedFileError):
        read_all(tmp_path / "run.h5")


def test_deep_json_is_told(whole: bytes, tmp_path: Path) -> None:
    told, body = map_in(whole)
    log = told["sets"]["log"]
    text = b"[" * 100_000 + b"]" * 100_000
    for line in (text, b'["session",0,{"header":' + text + b"}]"):
        made = b"%08x %s\n" % (zlib.crc32(line), line)
        log.update(row_bytes=1, rows=len(made), chunk_rows=len(made), offsets=[len(body)])
        (tmp_path / "run.h5").write_bytes(with_map(told, body + made))
        with pytest.raises(DamagedFileError):
            fastrec.load(tmp_path / "run.h5")


def test_rows_that_lie_in_the_same_place_take_no_more_memory_than_the_file(whole: bytes, tmp_path: Path) -> None:
    told, body = map_in(whole)
    name = next(name for name in told["sets"] if name.startswith("data/"))
    extent = told["sets"][name]
    extent.update(rows=extent["rows"] * 10_000, offsets=extent["offsets"] * 10_000)
    (tmp_path / "run.h5").write_bytes(with_map(told, body))
    with pytest.raises(DamagedFileError, match="more room than the file has"):
        fastrec.load(tmp_path / "run.h5")


def test_a_file_over_which_hdf5_might_crash_is_tried_out_elsewhere(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    with path.open("wb") as file:
        file.write(map_in(whole)[1])  # whole, but for what tells where all lies
    read_all(path)
    monkeypatch.setattr("fastrec.sinks.hdf5.probe._WALK", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(DamagedFileError, match="HDF5 crashed over it .signal 11."):
        fastrec.load(path)
    monkeypatch.setattr("fastrec.sinks.hdf5.probe.MAX_SECONDS", 0.2)
    monkeypatch.setattr("fastrec.sinks.hdf5.probe._WALK", "import time; time.sleep(9)")
    with pytest.raises(DamagedFileError, match="did not get through it"):
        fastrec.load(path)


def test_a_file_of_hdf5_that_is_hostile_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(format="fastrec", version=np.int64(2**60), segment="x", run=b"\xff")
        file["log"] = np.zeros(3)
    with pytest.raises(FastrecError):
        fastrec.load(path)
