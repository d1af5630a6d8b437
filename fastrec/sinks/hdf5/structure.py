"""The structure of files: all that needs HDF5 itself, and the proof that a structure is the one that was written.

    index = create("run.00000.h5.tmp", identity, specs)     # a file with room for all its rows
    shrink("run.00000.h5.tmp", used_rows)                   # cut down in place when it is finalized, or
    rewrite(read, identity, specs, "run.00000.h5.part", options=Rewriting(compression="gzip"))
    index = read_index("run.h5")                            # where everything lies, as HDF5 says

Between these calls HDF5 has no part in a file: rows are written and read at the offsets in the index (see ``layout``).

All files are opened with ``locking=False``, because the recorder itself holds a lock on a segment, and HDF5 would
ask for one that conflicts with it. They are written with ``libver="earliest"``: this format has no mark that says "open
for writing", so a file opens after a kill and while it grows, and tools with an old HDF5 read it.
"""

from __future__ import annotations

import errno
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import h5py
import msgspec
import numpy as np
from h5py import h5d, h5p, h5s, h5t, h5z

from fastrec._errors import DamagedFileError
from fastrec._optional import require
from fastrec.sinks.hdf5.checksums import add_checksum, strip_checksum
from fastrec.sinks.hdf5.layout import (
    FORMAT,
    OVERFLOW,
    TRAILER,
    VERSION,
    Bytes,
    DataInfo,
    DatasetExtent,
    Identity,
    SegmentIndex,
    dtype_named,
    write_rows,
)
from fastrec.sinks.hdf5.paths import open_regular
from fastrec.sinks.hdf5.probe import probe_in_subprocess
from fastrec.sinks.hdf5.system import next_data, read_at, sync

CHUNK_BYTES = 1024 * 1024
"""Chunks of about this size are written fastest, and a compressed one does not take long to unpack for one row."""

MAX_DIMENSIONS = 31
"""HDF5 has at most 32, and the rows take one."""

ALLOCATION_TURNS = 32
"""Data sets get their room in turns, a part each time. Recorded alike, they fill up alike; then the room that none of
them used lies at the end of the file, and is cut off with it."""

META_BLOCK_BYTES = 1 << 20
"""Room for the structure of a file in one piece, which would otherwise be spread among the values up to its end."""

ReadRows = Callable[[str, int, int], Bytes]
"""The name of a data set, a first row and a number of rows -> their bytes."""


class Rewriting(msgspec.Struct, frozen=True):
    """How a finished file is made: whether to wait until the disk has it, and how it is compressed."""

    durable: bool = False
    compression: str | None = None


class DatasetSpec(msgspec.Struct):
    """A data set to make: its name, a torch dtype's name or the numpy fields of a row, and its room in rows."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    rows: int
    attributes: Mapping[str, str] = {}

    @classmethod
    def of_data(cls, name: str, info: DataInfo, number: int, of: str, rows: int) -> DatasetSpec:
        """The data set of some data, with the attributes that tell other tools what it is; ``of`` a site or phase."""
        of = of.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "backslashreplace").decode()
        attributes = {"number": str(number), "of": of, "part": info.part, "torch_dtype": info.dtype}
        dtype = info.step_dtype() if info.part == "step" else info.dtype
        return cls(name, dtype, info.shape, rows, attributes)

    @property
    def row_bytes(self) -> int:
        return int(hdf5_type(self.dtype).get_size()) * math.prod(self.shape)


def create(path: str, identity: Identity, specs: Sequence[DatasetSpec]) -> SegmentIndex:
    """Make a file with room for all its rows, in place of the empty one that was claimed; where they will lie."""
    with h5py.File(path, "w", libver="earliest", locking=False, meta_block_size=META_BLOCK_BYTES) as file:
        _begin(file, identity)
        data_sets = [_make(file, spec, _chunked(spec), -(-spec.rows // ALLOCATION_TURNS)) for spec in specs]
        for turn in range(2, ALLOCATION_TURNS + 1):
            for data_set, spec in zip(data_sets, specs, strict=True):
                data_set.resize(-(-spec.rows * turn // ALLOCATION_TURNS), axis=0)
        file.flush()
        return _index_of(file)


def shrink(path: str, used_rows: Mapping[str, int]) -> None:
    """Finish a file in place: cut its data sets down to the rows that are used."""
    with h5py.File(path, "r+", libver="earliest", locking=False) as file:
        for name, rows in used_rows.items():
            if rows < file[name].shape[0]:
                file[name].resize(rows, axis=0)
        file.flush()
        index = _index_of(file)
    add_trailer(path, index)


def rewrite(read: ReadRows, identity: Identity, specs: Sequence[DatasetSpec], path: str, *, options: Rewriting) -> None:
    """Make a finished file of rows that ``read`` returns, without room for more, where there is nothing."""
    compression = options.compression
    with h5py.File(path, "x", libver="earliest", locking=False) as file:
        _begin(file, identity)
        for spec in specs:
            if compression is not None and spec.rows and (spec.name == OVERFLOW or spec.name.startswith("data/")):
                _make(file, spec, _compressed(spec, compression))
                _copy(read, spec, partial(_write_compressed, file[spec.name].id))
            else:
                _make(file, spec, _contiguous())
        file.flush()
        index = _index_of(file)
    # What is compressed was written by HDF5; everything else is written now that HDF5 has closed the file.
    descriptor = os.open(path, os.O_RDWR)
    try:
        for spec in specs:
            if not index.sets[spec.name].compressed:
                _copy(read, spec, partial(write_rows, descriptor, index.sets[spec.name]))
        add_trailer(path, index)
        if options.durable:
            sync(descriptor)
    finally:
        os.close(descriptor)


def rows_per_copy(spec: DatasetSpec) -> int:
    """How many rows ``rewrite`` reads at a time."""
    return max(1, CHUNK_BYTES // max(1, spec.row_bytes))


def read_index(path: str) -> SegmentIndex:
    """Where everything lies in a finished file, by its structure; DamagedFileError where it is not a recording."""
    # h5py raises any of these over a file whose structure makes no sense.
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT:
                raise DamagedFileError(f"{path!r} is an HDF5 file, but not a recording of fastrec")
            if int(file.attrs["version"]) != VERSION:
                raise DamagedFileError(
                    f"{path!r} has version {file.attrs['version']}; this fastrec reads {VERSION}, so update it"
                )
            return _index_of(file)
    except (OSError, KeyError, RuntimeError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise DamagedFileError(f"{path!r} can't be opened as HDF5: {error}") from error


def set_identity(file: Any, identity: Identity) -> None:
    """Write the attributes that say which recording a file is part of."""
    file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
    for name, value in msgspec.structs.asdict(identity).items():
        file.attrs[name] = value


def dataset_name(folder: str, text: str, taken: Mapping[str, Any]) -> str:
    """A name for a data set that looks like a site or phase, is one word to HDF5, and is not taken."""
    plain = re.sub(r"[^\w.:\[\]()-]", "|", text)[:120].strip(".") or "value"
    name, number = f"{folder}/{plain}", 2
    while name in taken:
        name, number = f"{folder}/{plain}#{number}", number + 1
    return name


_NUMPY_DTYPES = (
    *("float64", "float32", "float16", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("bool", "complex64", "complex128"),
)


def hdf5_type(dtype: Any) -> h5t.TypeID:
    """The type on the disk of a torch dtype's name or of numpy fields: the same bytes, as other tools can read them."""
    if not isinstance(dtype, str) or dtype in _NUMPY_DTYPES:
        return h5t.py_create(np.dtype(dtype), logical=True)
    if dtype == "bfloat16":
        bfloat16 = h5t.IEEE_F32LE.copy()
        bfloat16.set_fields(15, 7, 8, 0, 7)  # positions of sign, exponent and mantissa, with their lengths
        bfloat16.set_size(2)
        bfloat16.set_ebias(127)
        return bfloat16
    if dtype == "complex32":
        return h5t.py_create(np.dtype([("r", "<f2"), ("i", "<f2")]))
    # float8, and dtypes that are only bits, mean nothing to other tools.
    return h5t.py_create(np.dtype(f"u{dtype_named(dtype).itemsize}"))


def _begin(file: Any, identity: Identity) -> None:
    set_identity(file, identity)
    for group in ("data", "steps"):
        file.create_group(group)


def _make(file: Any, spec: DatasetSpec, layout: h5p.PropDCID, rows: int | None = None) -> Any:
    """A data set with room for some of its rows, or for all."""
    resizable = layout.get_layout() == h5d.CHUNKED
    limits = (h5s.UNLIMITED, *spec.shape) if resizable else None
    space = h5s.create_simple((spec.rows if rows is None else rows, *spec.shape), limits)
    data_set = h5py.Dataset(h5d.create(file.id, spec.name.encode(), hdf5_type(spec.dtype), space, layout))
    for name, value in spec.attributes.items():
        data_set.attrs[name] = value
    return data_set


def _contiguous() -> h5p.PropDCID:
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)  # so that its place is known before the first value
    layout.set_fill_time(h5d.FILL_TIME_NEVER)  # so that HDF5 never writes there, and the file stays sparse
    return layout


def _chunked(spec: DatasetSpec) -> h5p.PropDCID:
    layout = _contiguous()
    layout.set_chunk((max(1, min(spec.rows, CHUNK_BYTES // spec.row_bytes)), *spec.shape))
    return layout


def _compressed(spec: DatasetSpec, compression: str) -> h5p.PropDCID:
    layout = _chunked(spec)
    layout.set_alloc_time(h5d.ALLOC_TIME_INCR)  # how large a chunk will be is known once it is compressed
    _add_filter(layout, compression)
    return layout


def _copy(read: ReadRows, spec: DatasetSpec, write: Callable[[int, Bytes], None]) -> None:
    step = rows_per_copy(spec)
    for first in range(0, spec.rows, step):
        write(first, read(spec.name, first, min(step, spec.rows - first)))


def _write_compressed(data_set: h5d.DatasetID, first: int, rows: Bytes) -> None:
    space = data_set.get_space()
    shape = space.get_simple_extent_dims()[1:]
    count = rows.size // (data_set.get_type().get_size() * math.prod(shape))
    space.select_hyperslab((first, *(0 for _ in shape)), (count, *shape))
    data_set.write(h5s.create_simple((count, *shape)), space, rows, data_set.get_type())


PLUGIN_FILTERS = {"zstd": 32015, "lz4": 32004}
"""The numbers under which filters of hdf5plugin are registered with HDF5."""


def load_plugins(needed_by: str) -> Any:
    """Make the filters of hdf5plugin known to HDF5; a MissingExtraError says what needs them."""
    return require("hdf5plugin", extra="zstd", what=needed_by)


def _add_filter(layout: h5p.PropDCID, compression: str) -> None:
    name, _, level = compression.partition(":")
    if name in PLUGIN_FILTERS:
        load_plugins(name)
        values = (int(level or 1),) if name == "zstd" else ()
        layout.set_filter(PLUGIN_FILTERS[name], h5z.FLAG_MANDATORY, values)
        return
    layout.set_shuffle()
    if name == "gzip":
        layout.set_deflate(int(level or 1))
    else:
        layout.set_filter(h5z.FILTER_LZF, h5z.FLAG_OPTIONAL)


def _index_of(file: Any) -> SegmentIndex:
    numbers = [int(file.attrs[name]) for name in Identity.__struct_fields__[1:]]
    identity, sets = Identity(str(file.attrs["run"]), *numbers), dict[str, DatasetExtent]()

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            sets[name] = _extent(name, item)

    if identity.segment >= 0:  # else all data sets are virtual
        file.visititems(visit)
    return SegmentIndex(FORMAT, VERSION, identity, sets)


def _extent(name: str, data_set: Any) -> DatasetExtent:
    check_layout(name, data_set.id)
    rows, low_level = int(data_set.shape[0]), data_set.id
    row_bytes = low_level.get_type().get_size() * math.prod(data_set.shape[1:])
    if not rows:
        return DatasetExtent(row_bytes, 0, 1, [])
    if low_level.get_create_plist().get_nfilters():
        chunks: list[tuple[int, int]] = []
        low_level.chunk_iter(lambda chunk: chunks.append((chunk.byte_offset, chunk.size)))
        chunks.sort()
        offsets, sizes = [offset for offset, _ in chunks], [size for _, size in chunks]
        return DatasetExtent(row_bytes, rows, rows, offsets, compressed=True, sizes=sizes)
    if data_set.chunks is None:
        offset = low_level.get_offset()
        if offset is None:
            raise DamagedFileError(f"the data set {name!r} has no room in the file")
        return DatasetExtent(row_bytes, rows, rows, [offset])
    return DatasetExtent(row_bytes, rows, int(data_set.chunks[0]), _chunk_offsets(name, data_set, rows))


def _chunk_offsets(name: str, data_set: Any, rows: int) -> list[int]:
    chunk_rows, low_level = int(data_set.chunks[0]), data_set.id
    if low_level.get_num_chunks() < -(-rows // chunk_rows):
        raise DamagedFileError(f"the data set {name!r} lacks chunks")
    offsets = [-1] * -(-rows // chunk_rows)

    def note(chunk: Any) -> None:
        number = chunk.chunk_offset[0] // chunk_rows
        if number < len(offsets):
            offsets[number] = chunk.byte_offset

    low_level.chunk_iter(note)
    if -1 in offsets:
        raise DamagedFileError(f"the data set {name!r} lacks chunks")
    return offsets


MAX_INDEX_BYTES = 256 << 20
"""No index is longer. A file of holes may claim any length, and reading it would take memory."""

PAGE_BYTES = 4096

PIECE_BYTES = 1 << 20

ZEROS = bytes(PAGE_BYTES)


def add_trailer(path: str, index: SegmentIndex) -> None:
    """Write the index after the end of the HDF5 file, with a checksum of the structure in it.

    A reader then needs no HDF5 to find rows, and knows whether it can trust HDF5 with the file. HDF5 itself does not
    look past its end; a tool that changes the file writes over the trailer or cuts it off.
    """
    with open(path, "rb") as file:
        structure = _structure_checksum(file.fileno(), index, os.fstat(file.fileno()).st_size)
    entry = add_checksum(msgspec.json.encode(msgspec.structs.replace(index, structure=structure)))
    with open(path, "ab") as file:
        file.write(entry + TRAILER.pack(len(entry), FORMAT.encode()))


def read_trailer(descriptor: int) -> SegmentIndex | None:
    """The index after the end of a finished file; None where there is none."""
    return _index_and_end(descriptor)[0]


def open_verified(path: str, **options: Any) -> Any:
    """Open a finished file with HDF5; DamagedFileError where its structure is not the one that was written.

    HDF5 trusts what a file says of itself, and may crash over one that is damaged. Where nothing vouches for the
    structure, another process opens the file first.
    """
    with open(open_regular(path), "rb") as file:
        index, end = _index_and_end(file.fileno())
        is_vouched = index is not None and index.structure is not None
        if index is not None and is_vouched and index.structure != _structure_checksum(file.fileno(), index, end):
            raise DamagedFileError(f"{path!r} is damaged: its structure is not the one that was written")
    if not is_vouched:
        probe_in_subprocess(path)
    return h5py.File(path, "r", locking=False, **options)


ALLOWED_TYPES = (h5t.INTEGER, h5t.FLOAT, h5t.ENUM, h5t.COMPOUND, h5t.ARRAY)
"""Types whose values lie in the rows themselves: not strings, references or anything of variable length."""

ALLOWED_FILTERS = (*range(1, 7), 32000, 32001, 32004, 32008, 32015)
"""Those of HDF5 itself, lzf, blosc, lz4, bitshuffle and zstd."""

MAX_CHUNK_BYTES = 16 << 20
"""A chunk is unpacked whole for one of its rows, so it is no larger than this or than one row."""


def plain_dataset(file: Any, name: str, row_bytes: int | None = None) -> h5d.DatasetID:
    """A data set whose rows lie in the file itself, in a way that the format allows; else a DamagedFileError.

    A file may come from anywhere. Links and external storage would show other files as values, and a type of another
    size than the index says would be written past the end of the memory that was taken for it.
    """
    folder = file
    for part in name.split("/"):
        if not isinstance(folder, h5py.Group) or not isinstance(folder.get(part, getlink=True), h5py.HardLink):
            raise DamagedFileError(f"the data set {name!r} is missing, or a link to something else")
        folder = folder[part]
    if not isinstance(folder, h5py.Dataset):
        raise DamagedFileError(f"{name!r} is not a data set")
    data_set = folder.id
    check_layout(name, data_set)
    shape = data_set.get_space().get_simple_extent_dims()
    if row_bytes is not None and data_set.get_type().get_size() * math.prod(shape[1:]) != row_bytes:
        raise DamagedFileError(f"the data set {name!r} does not have rows of {row_bytes} bytes, as the index says")
    return data_set


def check_layout(name: str, data_set: h5d.DatasetID) -> None:
    """Check the type, shape, storage and filters of a data set; a DamagedFileError where the format has no such."""
    plist, shape = data_set.get_create_plist(), data_set.get_space().get_simple_extent_dims()
    layout = plist.get_layout()
    if not shape or layout not in (h5d.CONTIGUOUS, h5d.CHUNKED) or plist.get_external_count():
        raise DamagedFileError(f"the data set {name!r} is stored in a way that this reader does not know")
    if not _is_plain(data_set.get_type()):
        raise DamagedFileError(f"the data set {name!r} has a type that recordings do not have")
    if any(plist.get_filter(i)[0] not in ALLOWED_FILTERS for i in range(plist.get_nfilters())):
        raise DamagedFileError(f"the data set {name!r} has a filter that this reader does not know")
    if layout == h5d.CHUNKED:
        chunk, row_bytes = plist.get_chunk(), data_set.get_type().get_size() * math.prod(shape[1:])
        chunk_bytes = data_set.get_type().get_size() * math.prod(chunk)
        if chunk[1:] != shape[1:] or chunk_bytes > max(MAX_CHUNK_BYTES, row_bytes):
            raise DamagedFileError(f"the data set {name!r} has chunks that this reader does not know")


def _is_plain(data_type: h5t.TypeID) -> bool:
    kind = data_type.get_class()
    if kind == h5t.COMPOUND:
        return all(_is_plain(data_type.get_member_type(i)) for i in range(data_type.get_nmembers()))
    if kind in (h5t.ARRAY, h5t.ENUM):
        return _is_plain(data_type.get_super())
    return kind in ALLOWED_TYPES and (data_type.get_size() == 1 or data_type.get_order() == h5t.ORDER_LE)


def decode_index(text: bytes) -> SegmentIndex:
    """An index from its JSON."""
    try:
        return msgspec.json.decode(text, type=SegmentIndex)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DamagedFileError(f"the index of the file makes no sense: {error}") from error


def _index_and_end(descriptor: int) -> tuple[SegmentIndex | None, int]:
    """The index in the trailer, and where the HDF5 file ends."""
    size = os.fstat(descriptor).st_size
    last_bytes = read_at(descriptor, TRAILER.size, max(0, size - TRAILER.size))
    if len(last_bytes) < TRAILER.size:
        return None, size
    length, mark = TRAILER.unpack(last_bytes)
    if mark.rstrip(b"\0") != FORMAT.encode():
        return None, size
    start = size - TRAILER.size - length
    fits = start >= 0 and length <= MAX_INDEX_BYTES
    text = strip_checksum(read_at(descriptor, length, start).rstrip(b"\n")) if fits else None
    if text is None:
        raise DamagedFileError("the end of the file, which says where everything lies, is damaged")
    index = decode_index(text)
    return (index, start) if index.version == VERSION else (None, size)


def _structure_checksum(descriptor: int, index: SegmentIndex, end: int) -> int:
    """A checksum of all bytes outside of chunks, with their positions; pages of zeros are left out.

    A file that was cut down in place has holes where it had room, which read as zeros and may be gigabytes. Leaving
    zeros out lets them be skipped, and a copy in which holes became zeros is as good as the original.
    """
    total = 0
    for start, stop in _outside_chunks(index, end):
        position = _next_data(descriptor, start, stop)
        while position < stop:
            data = read_at(descriptor, min(PAGE_BYTES - position % PAGE_BYTES, stop - position), position)
            if not data:
                break
            if data != ZEROS[: len(data)]:
                total = zlib.crc32(data, zlib.crc32(b"%d" % position, total))
            position += len(data)
            if position % PIECE_BYTES == 0:
                position = _next_data(descriptor, position, stop)
    return total


def _next_data(descriptor: int, start: int, stop: int) -> int:
    """Where a stretch of a file goes on with something else than a hole."""
    try:
        return max(start, next_data(descriptor, start) // PAGE_BYTES * PAGE_BYTES)
    except OSError as error:
        return stop if error.errno == errno.ENXIO else start  # only holes follow; or this file system knows of none


def _outside_chunks(index: SegmentIndex, end: int) -> Iterator[tuple[int, int]]:
    """The stretches of a file in which no rows lie."""
    done = 0
    for start, stop in sorted(chunk for extent in index.sets.values() for chunk in extent.chunks()):
        if start > done:
            yield done, min(start, end)
        done = max(done, stop)
        if done >= end:
            return
    yield done, end
