"""A reader written from docs/files.md, without fastrec: h5py, numpy and the standard library."""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

SHOWS_RECORDINGS = -(2**31)


@dataclass
class Record:
    pass_index: int
    label: str
    site: str
    phase: str
    step: int
    value: bytes | None
    shape: tuple[int, ...] = ()


@dataclass
class Found:
    records: list[Record] = field(default_factory=list)
    steps: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    n_passes: int = 0
    checksums: int = 0


def read(path: str) -> Found:
    """All that a recording holds, in the order in which fastrec shows it."""
    found = Found()
    for part in recordings(path):
        sessions: dict[int, list[h5py.File]] = {}
        for name in files_of(part):
            file = h5py.File(name, "r")
            sessions.setdefault(int(file.attrs["session"]), []).append(file)
        before, marks = found.n_passes, {}
        for _, files in sorted(sessions.items()):
            before = read_session(files, found, before, marks)
            for file in files:
                file.close()
        found.n_passes = before
    found.records.sort(key=lambda record: record.pass_index)
    return found


def recordings(path: str) -> list[str]:
    """The recording, or those that it shows."""
    if os.path.exists(path):
        with h5py.File(path) as file:
            if file.attrs["segment"] == SHOWS_RECORDINGS:
                named = json.loads(file["sources"][:].tobytes())
                return [os.path.join(os.path.dirname(path), one["path"]) for one in named]
    return [path]


def files_of(path: str) -> list[str]:
    """The files that have rows."""
    if os.path.exists(path):
        with h5py.File(path) as file:
            if file.attrs["segment"] >= 0:
                return [path]
    stem, number, files = path.removesuffix(".h5"), 0, []
    while True:
        name = f"{stem}.{number:05d}.h5"
        if not os.path.exists(name):
            name += ".tmp"
            if not os.path.exists(name + ".map"):
                return files
        files.append(name)
        number += 1


def read_session(files: list[h5py.File], found: Found, before: int, marks_before: dict[str, int]) -> int:
    """One session; the number of the first pass after it."""
    log: dict[tuple[str, int], Any] = {}
    data: dict[tuple[int, int], Any] = {}
    for file in files:
        for kind, number, content in log_of(file):
            log[kind, number] = content
            if kind == "data":
                data[int(file.attrs["segment"]), number] = content
    by_segment = {int(file.attrs["segment"]): file for file in files}
    marked: dict[str, int] = {}
    for file in files:
        check(file, {number: own for (segment, number), own in data.items() if segment == file.attrs["segment"]}, found)
        records = file["records"][:]
        for row in whole(file["passes"]):
            phase = log["phase", int(row["phase"])]
            for record in records[row["first"] : row["first"] + row["count"]]:
                meta = log["variant", int(record["variant"])]
                value, shape = value_of(record, data, by_segment)
                found.records.append(
                    Record(
                        before + int(row["pass_index"]),
                        meta["label"],
                        log["site", meta["site"]]["name"],
                        phase,
                        marks_before.get(phase, 0) + int(row["step"]),
                        value,
                        shape,
                    )
                )
        for mark in whole(file["marks"]):
            own = data[int(mark["segment"]), int(mark["data"])]
            raw, _ = value_of(mark, data, by_segment)
            row = np.frombuffer(raw, step_dtype(own))[0]
            phase = log["phase", int(mark["phase"])]
            columns = {name: row[f"column:{name}"] for name, _, _ in own["columns"]}
            found.steps.append((phase, marks_before.get(phase, 0) + int(row["step"]), columns))
            marked[phase] = marked.get(phase, 0) + 1
    for phase, count in marked.items():
        marks_before[phase] = marks_before.get(phase, 0) + count
    return before + begun_of(files)


def log_of(file: h5py.File) -> Iterator[tuple[str, int, Any]]:
    for line in file["log"][:].tobytes().split(b"\n"):
        if len(line) < 10 or b"%08x" % zlib.crc32(line[9:]) != line[:8]:
            return
        yield json.loads(line[9:])


def whole(table: h5py.Dataset) -> Any:
    """The rows that were written to their end."""
    rows = table[:]
    return rows[: int(np.argmin(rows["ok"] == 1))] if (rows["ok"] != 1).any() else rows


def begun_of(files: list[h5py.File]) -> int:
    """What the session's last file says that has counters."""
    for file in reversed(files):
        rows = [row for row in file["counters"][:] if zlib.crc32(row.tobytes()[:-4]) == row["checksum"]]
        written = [row for row in rows if row["written"]]
        if written:
            return int(max(written, key=lambda row: row["written"])["begun"])
    return 0


def step_dtype(own: dict[str, Any]) -> np.dtype[Any]:
    columns = [(f"column:{name}", dtype, tuple(shape)) for name, dtype, shape in own["columns"]]
    return np.dtype([("step", "<i8"), ("order", "<i8"), *columns])


def size_of(own: dict[str, Any]) -> int:
    if own["part"] == "step":
        return step_dtype(own).itemsize
    sizes = {"bfloat16": 2, "complex32": 4}
    item = 1 if own["dtype"].startswith("float8") else sizes.get(own["dtype"]) or np.dtype(own["dtype"]).itemsize
    return item * int(np.prod(own["shape"], dtype=np.int64))


def value_of(row: Any, data: dict[tuple[int, int], Any], files: dict[int, h5py.File]) -> tuple[bytes | None, Any]:
    if row["data"] < 0:
        return None, ()
    own = data[int(row["segment"]), int(row["data"])]
    size, file = size_of(own), files[int(row["segment"])]
    if not size:
        return b"", tuple(own["shape"])
    if row["row"] < 0:
        start = -1 - int(row["row"])
        return file["late"][start : start + size].tobytes(), tuple(own["shape"])
    return rows_of(file[own["name"]], int(row["row"]), 1), tuple(own["shape"])


def rows_of(made: h5py.Dataset, first: int, count: int) -> bytes:
    """Rows as they lie on the disk, whatever numpy makes of their type."""
    kind = made.id.get_type()
    out = np.empty(count * kind.get_size() * int(np.prod(made.shape[1:], dtype=np.int64)), np.uint8)
    space = made.id.get_space()
    space.select_hyperslab((first, *(0 for _ in made.shape[1:])), (count, *made.shape[1:]))
    made.id.read(h5py.h5s.create_simple((count, *made.shape[1:])), space, out, kind)
    return out.tobytes()


def check(file: h5py.File, data: dict[int, Any], found: Found) -> None:
    """Compare each checksum of a file."""
    names = {-1: "records", -2: "passes", -3: "marks"}
    for row in whole(file["checks"]):
        number, first, count = int(row["data"]), int(row["row"]), int(row["count"])
        if first < 0:
            raw = file["late"][-1 - first : -1 - first + count].tobytes()
        else:
            raw = rows_of(file[names[number] if number < 0 else data[number]["name"]], first, count)
        words = np.frombuffer(raw + bytes(-len(raw) % 4096), "<u8").reshape(-1, 512)
        sums = np.concatenate([words.sum(0, dtype="<u8"), words.sum(1, dtype="<u8")])
        assert zlib.crc32(sums.tobytes()) == row["checksum"]
        found.checksums += 1
