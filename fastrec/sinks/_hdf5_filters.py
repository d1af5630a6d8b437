"""Compression of finished files: HDF5's own filters, and those that hdf5plugin brings."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from h5py import h5p, h5z

from fastrec._errors import MissingExtraError

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
        raise MissingExtraError(f"{what} needs hdf5plugin, which is not installed; pip install 'fastrec[zstd]'")
    return import_module("hdf5plugin")
