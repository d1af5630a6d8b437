"""Comparing the tensors of a history, as ``history.save(path)`` writes it, with their checksums."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from fastrec.sinks.hdf5.structure import open_verified

CHECKSUM = "crc32"
"""The attribute of a data set that has its checksum, and of a file in which all have one."""

PIECE_BYTES = 16 << 20


def history_blocks(path: str) -> list[tuple[str, int, str]] | None:
    """The name of each data set, its bytes, and why it is not what was written; None where the file is no history."""
    try:
        with open_verified(path) as file:
            if CHECKSUM not in file.attrs or "structure" not in file:
                return None
            return [(name, *_damage(item)) for name, item in _items(file, "")]
    # h5py raises any of these where HDF5 can't make sense of the bytes.
    except (OSError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def _items(group: Any, above: str) -> Iterator[tuple[str, Any]]:
    """What is in the file itself, groups opened; None for a link, which may lead to another file."""
    for part in group:
        name = f"{above}{part}"
        is_inside = isinstance(group.get(part, getlink=True), h5py.HardLink)
        item = group[part] if is_inside else None
        if isinstance(item, h5py.Group):
            yield from _items(item, f"{name}/")
        else:
            yield name, item


def _damage(item: Any) -> tuple[int, str]:
    """The bytes of a data set, and what is wrong with it."""
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.chunks is not None:
        return 0, "a link, or stored in another way than a history stores its tensors"
    if item.dtype.kind not in "biufc" or (item.size and item.id.get_storage_size() != item.nbytes):
        return 0, "its type or its size is not one that a history has"
    checksum = 0
    if item.size:
        rows = item if item.shape else item[()].reshape(1)
        step = max(1, PIECE_BYTES * len(rows) // max(1, item.nbytes))
        for first in range(0, len(rows), step):
            checksum = zlib.crc32(np.ascontiguousarray(rows[first : first + step]).view(np.uint8).data, checksum)
    same = item.attrs.get(CHECKSUM) == checksum
    return item.nbytes, "" if same else "other bytes than were written"
