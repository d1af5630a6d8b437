"""All that needs h5py: making the structure of a file, closing it in order, finding what lies where."""

from __future__ import annotations

import errno
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import h5py
import msgspec
import numpy as np
from h5py import h5d, h5p, h5s, h5t, h5z

from fastrec._errors import DamagedFileError, MissingExtraError
from fastrec._version import DISTRIBUTION
from fastrec.sinks.hdf5.catalog_log import checked, signed, torch_dtype_of
from fastrec.sinks.hdf5.layout import (
    FORMAT,
    LATE,
    TRAILER,
    VERSION,
    Bytes,
    DatasetExtent,
    Identity,
    SegmentIndex,
    write_rows,
)

CHUNK_BYTES = 1024 * 1024

TURNS = 32
"""Data sets get their room in turns, so that what none of them used lies at the end, and is cut off with it."""

META_BYTES = 1 << 20
"""Room for the structure of a file in one piece, which would else lie among the values up to the end of the file."""

_SAME = "float64 float32 float16 uint8 uint16 uint32 uint64 int8 int16 int32 int64 bool complex64 complex128".split()

Read = Callable[[str, int, int], Bytes]
"""The name of a data set, a first row and a number of rows -> their bytes."""


class Rewriting(msgspec.Struct, frozen=True):
    """How a finished file is made: whether the disk has to have it, and whether it is compressed."""

    durable: bool = False
    compression: str | None = None


class DatasetSpec(msgspec.Struct):
    """A data set to make: its name, the torch dtype or the numpy fields of a value, and its room in rows."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    rows: int
    attributes: Mapping[str, str] = {}


def create(path: str, identity: Identity, wanted: Sequence[DatasetSpec]) -> SegmentIndex:
    """Make a file with room for all its rows."""
    with h5py.File(path, "w", libver="earliest", locking=False, meta_block_size=META_BYTES) as file:
        _start(file, identity)
        made = [_make(file, one, _chunked(one), -(-one.rows // TURNS)) for one in wanted]
        for turn in range(2, TURNS + 1):
            for data_set, one in zip(made, wanted, strict=True):
                data_set.resize(-(-one.rows * turn // TURNS), axis=0)
        file.flush()
        return _map_of(file)


def set_identity(file: Any, identity: Identity) -> None:
    """Write the attributes that tell what a file is part of."""
    file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
    for name, value in msgspec.structs.asdict(identity).items():
        file.attrs[name] = value


def map_of(path: str) -> SegmentIndex:
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
    add_trailer(path, found)


def rewrite(read: Read, identity: Identity, wanted: Sequence[DatasetSpec], path: str, *, options: Rewriting) -> None:
    """A file of the same rows at the same places, without the room that was not used; ``read`` reads the old one."""
    compression = options.compression
    with h5py.File(path, "w", libver="earliest", locking=False) as file:
        _start(file, identity)
        for one in wanted:
            packed = compression is not None and one.rows and (one.name == LATE or one.name.startswith("data/"))
            _make(file, one, _packed(one, compression) if packed else _contiguous(one))
            if packed:
                _copy(read, one, partial(_write_packed, file[one.name].id))
        file.flush()
        new = _map_of(file)
    target = os.open(path, os.O_RDWR)
    try:
        for one in wanted:
            if not new.sets[one.name].packed:
                _copy(read, one, partial(write_rows, target, new.sets[one.name]))
        add_trailer(path, new)
        if options.durable:
            os.fdatasync(target)
    finally:
        os.close(target)


def stretch_of(one: DatasetSpec) -> int:
    """How many rows are copied at a time."""
    row_bytes = int(type_of(one.dtype).get_size() * np.prod(one.shape, dtype=np.int64))
    return max(1, CHUNK_BYTES // max(1, row_bytes))


def _copy(read: Read, one: DatasetSpec, write: Callable[[int, Bytes], None]) -> None:
    step = stretch_of(one)
    for first in range(0, one.rows, step):
        write(first, read(one.name, first, min(step, one.rows - first)))


def _write_packed(made: h5d.DatasetID, first: int, rows: Bytes) -> None:
    space = made.get_space()
    shape = space.get_simple_extent_dims()[1:]
    count = rows.size // (made.get_type().get_size() * int(np.prod(shape, dtype=np.int64)))
    space.select_hyperslab((first, *(0 for _ in shape)), (count, *shape))
    made.write(h5s.create_simple((count, *shape)), space, rows, made.get_type())


def dataset_name(folder: str, text: str, taken: Mapping[str, Any]) -> str:
    """A data set's name that looks like a site, is one word to HDF5, and is not taken."""
    plain = re.sub(r"[^\w.:\[\]()-]", "|", text)[:120].strip(".") or "value"
    name, number = f"{folder}/{plain}", 2
    while name in taken:
        name, number = f"{folder}/{plain}#{number}", number + 1
    return name


def attribute(text: str) -> str:
    """A text as an attribute can hold it."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "backslashreplace").decode()


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
    # float8 and the dtypes that are only bits, of which other tools know nothing.
    return h5t.py_create(np.dtype(f"u{torch_dtype_of(dtype).itemsize}"))


def _start(file: Any, identity: Identity) -> None:
    set_identity(file, identity)
    for group in ("data", "steps"):
        file.create_group(group)


def _make(file: Any, one: DatasetSpec, layout: h5p.PropDCID, rows: int | None = None) -> Any:
    """A data set with room for some of its rows, or all."""
    resizable = layout.get_layout() == h5d.CHUNKED
    limits = (h5s.UNLIMITED, *one.shape) if resizable else None
    space = h5s.create_simple((one.rows if rows is None else rows, *one.shape), limits)
    made = h5py.Dataset(h5d.create(file.id, one.name.encode(), type_of(one.dtype), space, layout))
    for name, value in one.attributes.items():
        made.attrs[name] = value
    return made


def _contiguous(one: DatasetSpec) -> h5p.PropDCID:
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5d.FILL_TIME_NEVER)
    return layout


def _chunked(one: DatasetSpec) -> h5p.PropDCID:
    layout = _contiguous(one)
    row_bytes = type_of(one.dtype).get_size() * int(np.prod(one.shape, dtype=np.int64))
    layout.set_chunk((max(1, min(one.rows, CHUNK_BYTES // row_bytes)), *one.shape))
    return layout


def _packed(one: DatasetSpec, compression: str | None) -> h5p.PropDCID:
    layout = _chunked(one)
    layout.set_alloc_time(h5d.ALLOC_TIME_INCR)
    compress(layout, compression or "")
    return layout


def _map_of(file: Any) -> SegmentIndex:
    numbers = [int(file.attrs[name]) for name in Identity.__struct_fields__[1:]]
    identity, sets = Identity(str(file.attrs["run"]), *numbers), dict[str, DatasetExtent]()

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            sets[name] = _extent(name, item)

    if identity.segment >= 0:  # else its data sets are virtual
        file.visititems(visit)
    return SegmentIndex(FORMAT, VERSION, identity, sets)


def _extent(name: str, made: Any) -> DatasetExtent:
    if made.ndim < 1 or made.external or made.is_virtual:
        raise DamagedFileError(f"the data set {name!r} is stored in a way that this reader does not know")
    rows, space = int(made.shape[0]), made.id
    row_bytes = space.get_type().get_size() * int(np.prod(made.shape[1:], dtype=np.int64))
    if not rows:
        return DatasetExtent(row_bytes, 0, 1, [])
    if space.get_create_plist().get_nfilters():
        chunks = sorted(_chunks(space))
        return DatasetExtent(
            row_bytes, rows, rows, [at for at, _ in chunks], packed=True, sizes=[size for _, size in chunks]
        )
    if made.chunks is None:
        offset = space.get_offset()
        if offset is None:
            raise DamagedFileError(f"the data set {name!r} has no room in the file")
        return DatasetExtent(row_bytes, rows, rows, [offset])
    return DatasetExtent(row_bytes, rows, int(made.chunks[0]), _chunk_offsets(name, made, rows))


def _chunks(space: h5d.DatasetID) -> list[tuple[int, int]]:
    """Where chunks lie, and how large they are there."""
    found: list[tuple[int, int]] = []
    space.chunk_iter(lambda info: found.append((info.byte_offset, info.size)))
    return found


def _chunk_offsets(name: str, made: Any, rows: int) -> list[int]:
    if made.chunks[1:] != made.shape[1:]:
        raise DamagedFileError(f"the data set {name!r} has chunks that this reader does not know")
    chunk, space = int(made.chunks[0]), made.id
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
    return offsets


PLUGINS = {"zstd": 32015, "lz4": 32004}


def compress(layout: h5p.PropDCID, compression: str) -> None:
    """Let a data set that is about to be made be compressed; ``compression`` is a name, or a name and a level."""
    name, _, level = compression.partition(":")
    if name in PLUGINS:
        load_plugins(name)
        values = (int(level or 1),) if name == "zstd" else ()
        layout.set_filter(PLUGINS[name], h5z.FLAG_MANDATORY, values)
        return
    layout.set_shuffle()
    if name == "gzip":
        layout.set_deflate(int(level or 1))
    else:
        layout.set_filter(h5z.FILTER_LZF, h5z.FLAG_OPTIONAL)


def load_plugins(what: str) -> Any:
    """Let HDF5 know the filters of hdf5plugin."""
    if find_spec("hdf5plugin") is None:
        raise MissingExtraError(
            f"{what} needs hdf5plugin, which is not installed; install it with pip install '{DISTRIBUTION}[zstd]'"
        )
    return import_module("hdf5plugin")


PAGE = 4096

PIECE = 1 << 20

ZEROS = bytes(PAGE)


def add_trailer(path: str, found: SegmentIndex) -> None:
    """Tell behind the end of the HDF5 file what lies where; any tool that changes the file drops it."""
    with open(path, "rb") as whole:
        structure = _structure(whole.fileno(), found, os.fstat(whole.fileno()).st_size)
    entry = signed(msgspec.json.encode(msgspec.structs.replace(found, structure=structure)))
    with open(path, "ab") as file:
        file.write(entry + TRAILER.pack(len(entry), FORMAT.encode()))


def read_trailer(file: int) -> SegmentIndex | None:
    """The map behind the end of a finished file, which spares looking at its structure; None where there is none."""
    return _located(file)[0]


def opened_file(path: str, **options: Any) -> Any:
    """A finished file, opened by HDF5; a DamagedFileError where its structure is not the one that was written.

    HDF5 trusts what a file says of itself, and may crash over one that is damaged.
    """
    with open(path, "rb") as file:
        found, end = _located(file.fileno())
        if found is not None and found.structure not in (None, _structure(file.fileno(), found, end)):
            raise DamagedFileError(f"{path!r} is damaged: its structure is not the one that was written")
    return h5py.File(path, "r", locking=False, **options)


def decoded_index(entry: bytes) -> SegmentIndex:
    """A map from its JSON."""
    try:
        return msgspec.json.decode(entry, type=SegmentIndex)
    except msgspec.DecodeError as error:
        raise DamagedFileError(f"the map of what lies where makes no sense: {error}") from error


def _located(file: int) -> tuple[SegmentIndex | None, int]:
    """The map, and where the HDF5 file ends."""
    size = os.fstat(file).st_size
    last = os.pread(file, TRAILER.size, max(0, size - TRAILER.size))
    if len(last) < TRAILER.size:
        return None, size
    length, mark = TRAILER.unpack(last)
    if mark.rstrip(b"\0") != FORMAT.encode():
        return None, size
    start = size - TRAILER.size - length
    entry = checked(os.pread(file, length, start).rstrip(b"\n")) if start >= 0 else None
    if entry is None:
        raise DamagedFileError("the end of the file, which tells what lies where, is damaged")
    found = decoded_index(entry)
    return (found, start) if found.version == VERSION else (None, size)


def _structure(file: int, found: SegmentIndex, end: int) -> int:
    """A checksum of all bytes that are no rows; of pages of zeros, which a file that grew may have many of, none."""
    total = 0
    for start, stop in _outside(found, end):
        at = _next_data(file, start, stop)
        while at < stop:
            data = os.pread(file, min(PAGE - at % PAGE, stop - at), at)
            if not data:
                break
            if data != ZEROS[: len(data)]:
                total = zlib.crc32(data, zlib.crc32(b"%d" % at, total))
            at += len(data)
            if at % PIECE == 0:
                at = _next_data(file, at, stop)
    return total


def _next_data(file: int, start: int, stop: int) -> int:
    """Where a stretch goes on that is no hole."""
    try:
        return max(start, os.lseek(file, start, os.SEEK_DATA) // PAGE * PAGE)
    except OSError as error:
        return stop if error.errno == errno.ENXIO else start  # there are only holes; else the file system does not tell


def _outside(found: SegmentIndex, end: int) -> Iterator[tuple[int, int]]:
    """The stretches of a file in which no rows lie."""
    inside = [piece for extent in found.sets.values() for piece in extent.stored()]
    done = 0
    for start, stop in sorted(inside):
        if start > done:
            yield done, min(start, end)
        done = max(done, stop)
        if done >= end:
            return
    yield done, end
