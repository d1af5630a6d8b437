"""Walks through the structure of an HDF5 file as its readers do; run in a process of its own, it may well die of it."""

import sys
from typing import Any

import h5py


def walk(path: str) -> None:
    """Look at all data sets, and where their chunks lie."""
    with h5py.File(path, "r", locking=False) as file:
        dict(file.attrs)
        file.visititems(_look)


def _look(name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset):
        dict(item.attrs)
        space = item.id
        space.get_type(), item.dtype, item.shape, space.get_offset(), space.get_create_plist().get_nfilters()
        if item.chunks is not None:
            space.chunk_iter(lambda info: None)


if __name__ == "__main__":
    walk(sys.argv[1])
