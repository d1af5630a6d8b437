"""All that needs h5py: making the structure of a file, closing it in order, finding what lies where."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import msgspec
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from fastrec._errors import DamagedFileError
from fastrec.sinks._hdf5_layout import FORMAT, TRAILER, VERSION, Extent, Identity, SegmentMap, read_rows, write_rows
from fastrec.sinks._hdf5_log import signed

CHUNK_BYTES = 1024 * 1024
_SAME = "float64 float32 float16 uint8 uint16 uint32 uint64 int8 int16 int32 int64 bool complex64 complex128".split()


class Wanted(msgspec.Struct):
    """A data set to make: its name, the torch dtype or the numpy fields of a value, and its room in rows."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    rows: int
    attributes: Mapping[str, str] = {}


def create(path: str, identity: Identity, wanted: Sequence[Wanted], *, exact: bool = False) -> SegmentMap:
    """Make a file with room for all its rows; ``exact``: of no more rows, each data set in one piece."""
    with h5py.File(path, "w", libver="earliest", locking=False) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        for name, value in msgspec.structs.asdict(identity).items():
            file.attrs[name] = value
        for group in ("data", "steps"):
            file.create_group(group)
        for one in wanted:
            _make(file, one, exact)
        file.flush()
        return _map_of(file)


def map_of(path: str) -> SegmentMap:
    """Where everything lies in a finished file; a file that is none is a DamagedFileError."""
    # h5py raises any of these for a file whose structure makes no sense.
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT:
                raise DamagedFileError(f"{path!r} is an HDF5 file, and no recording of fastrec")
            if int(file.attrs["version"]) != VERSION:
                raise DamagedFileError(f"{path!r} has version {file.attrs['version']}; this fastrec reads {VERSION}")
            return _map_of(file)
    except (OSError, KeyError, RuntimeError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise DamagedFileError(f"{path!r} can't be opened as HDF5: {error}") from error


def shrink(path: str, used: Mapping[str, int]) -> None:
    """Cut a file's data sets down to the rows that are used."""
    with h5py.File(path, "r+", libver="earliest", locking=False) as file:
        for name, rows in used.items():
            if rows < file[name].shape[0]:
                file[name].resize(rows, axis=0)
        file.flush()
        found = _map_of(file)
    _add_trailer(path, found)


def rewrite(source: int, old: SegmentMap, wanted: Sequence[Wanted], path: str, *, durable: bool) -> None:
    """A file of the same rows at the same places, without the room that was not used."""
    new = create(path, old.identity, wanted, exact=True)
    target = os.open(path, os.O_RDWR)
    try:
        for one in wanted:
            step = max(1, CHUNK_BYTES // max(1, old.sets[one.name].row_bytes))
            for first in range(0, one.rows, step):
                count = min(step, one.rows - first)
                write_rows(target, new.sets[one.name], first, read_rows(source, old.sets[one.name], first, count))
        _add_trailer(path, new)
        if durable:
            os.fdatasync(target)
    finally:
        os.close(target)


def name_of(folder: str, text: str, taken: Mapping[str, Any]) -> str:
    """A data set's name that looks like a site, is one word to HDF5, and is not taken."""
    plain = re.sub(r"[^\w.:\[\]()-]", "|", text)[:120].strip(".") or "value"
    name, number = f"{folder}/{plain}", 2
    while name in taken:
        name, number = f"{folder}/{plain}#{number}", number + 1
    return name


def type_of(dtype: Any) -> h5t.TypeID:
    """The type on disk of a torch dtype's name or of numpy fields: the same bytes, which other tools can read."""
    if not isinstance(dtype, str):
        return h5t.py_create(np.dtype(dtype), logical=True)
    if dtype in _SAME:
        return h5t.py_create(np.dtype(dtype), logical=True)
    if dtype == "bfloat16":
        made = h5t.IEEE_F32LE.copy()
        made.set_fields(15, 7, 8, 0, 7)
        made.set_size(2)
        made.set_ebias(127)
        return made
    if dtype == "complex32":
        return h5t.py_create(np.dtype([("r", "<f2"), ("i", "<f2")]))
    return h5t.py_create(np.dtype(np.uint8))


def _add_trailer(path: str, found: SegmentMap) -> None:
    """Tell behind the end of the HDF5 file what lies where; any tool that changes the file drops it."""
    entry = signed(msgspec.json.encode(found))
    with open(path, "ab") as file:
        file.write(entry + TRAILER.pack(len(entry), FORMAT.encode()))


def _make(file: Any, one: Wanted, exact: bool) -> None:
    type_id = type_of(one.dtype)
    row_bytes = type_id.get_size() * int(np.prod(one.shape, dtype=np.int64))
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5d.FILL_TIME_NEVER)
    if exact:
        space = h5s.create_simple((one.rows, *one.shape))
    else:
        layout.set_chunk((max(1, min(one.rows, CHUNK_BYTES // row_bytes)), *one.shape))
        space = h5s.create_simple((one.rows, *one.shape), (h5s.UNLIMITED, *one.shape))
    made = h5py.Dataset(h5d.create(file.id, one.name.encode(), type_id, space, layout))
    for name, value in one.attributes.items():
        made.attrs[name] = value


def _map_of(file: Any) -> SegmentMap:
    sets: dict[str, Extent] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            sets[name] = _extent(name, item)

    file.visititems(visit)
    numbers = [int(file.attrs[name]) for name in Identity.__struct_fields__[1:]]
    return SegmentMap(FORMAT, VERSION, Identity(str(file.attrs["run"]), *numbers), sets)


def _extent(name: str, made: Any) -> Extent:
    if made.ndim < 1 or made.compression or made.external or made.is_virtual:
        raise DamagedFileError(f"the data set {name!r} is stored in a way that this reader does not know")
    rows, space = int(made.shape[0]), made.id
    row_bytes = space.get_type().get_size() * int(np.prod(made.shape[1:], dtype=np.int64))
    if not rows:
        return Extent(row_bytes, 0, 1, [])
    if made.chunks is None:
        offset = space.get_offset()
        if offset is None:
            raise DamagedFileError(f"the data set {name!r} has no room in the file")
        return Extent(row_bytes, rows, rows, [offset])
    if made.chunks[1:] != made.shape[1:] or made.shuffle or made.fletcher32 or made.scaleoffset:
        raise DamagedFileError(f"the data set {name!r} has chunks or filters that this reader does not know")
    chunk = int(made.chunks[0])
    if space.get_num_chunks() < -(-rows // chunk):
        raise DamagedFileError(f"the data set {name!r} lacks chunks")
    offsets = [-1] * -(-rows // chunk)

    def found(info: Any) -> None:
        at = info.chunk_offset[0] // chunk
        if at < len(offsets):
            offsets[at] = info.byte_offset

    space.chunk_iter(found)
    if -1 in offsets:
        raise DamagedFileError(f"the data set {name!r} lacks chunks")
    return Extent(row_bytes, rows, chunk, offsets)
