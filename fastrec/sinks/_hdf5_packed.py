"""Rows of compressed data sets, which only HDF5 itself can read."""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec
from typing import Any

import numpy as np
from h5py import h5s

from fastrec._errors import DamagedFileError
from fastrec.sinks._hdf5_filters import load_plugins
from fastrec.sinks._hdf5_layout import Bytes
from fastrec.sinks._hdf5_trailer import opened

CACHE_BYTES = 16 << 20


class PackedFile:
    """A finished file whose data sets are compressed, opened when the first of them is read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._pid = 0
        self._file: Any = None

    def rows(self, name: str, first: int, count: int, nbytes: int, out: Bytes | None) -> Bytes:
        """Rows of a data set, as the bytes of its type on the disk."""
        with self._lock:
            try:
                made = self._opened()[name].id
                space = made.get_space()
                shape = space.get_simple_extent_dims()
                if first < 0 or count < 0 or first + count > shape[0]:
                    raise DamagedFileError(f"rows {first} to {first + count} were asked for, and there are {shape[0]}")
                data = np.empty(count * nbytes, np.uint8) if out is None else out
                if data.size:
                    space.select_hyperslab((first, *(0 for _ in shape[1:])), (count, *shape[1:]))
                    made.read(h5s.create_simple((count, *shape[1:])), space, data, made.get_type())
            except DamagedFileError:
                raise
            except (OSError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
                if find_spec("hdf5plugin") is None:
                    load_plugins(f"{self._path!r} ({error})")
                raise DamagedFileError(f"{self._path!r}, {name!r} can't be read: {error}") from error
        return data

    def _opened(self) -> Any:
        if self._pid != os.getpid():  # a handle of HDF5 is of no use in a forked child
            if find_spec("hdf5plugin") is not None:
                load_plugins("reading")
            self._file = opened(self._path, rdcc_nbytes=CACHE_BYTES)
            self._pid = os.getpid()
        return self._file
