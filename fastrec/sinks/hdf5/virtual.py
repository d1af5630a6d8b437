"""Files of virtual data sets, which show the data of several files as one, to tools that know HDF5 but not fastrec.

    write_virtual_segments(paths, 3)     # run.h5 over run.00000.h5 to run.00002.h5

fastrec itself reads the original files. HDF5 shows fill values where one of them is missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import h5py
import msgspec
import numpy as np

from fastrec._errors import DamagedFileError, FastrecError, RecordingExistsError
from fastrec.sinks.hdf5.layout import FORMAT, SOURCES, VERSION, Identity, SegmentIndex
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.structure import add_trailer, dataset_name, open_verified, read_index, set_identity


class _VirtualDataset(msgspec.Struct):
    """Data sets of several files, of the values of one site or the steps of one phase, with (file, name, rows) each."""

    dtype: Any
    shape: tuple[int, ...]
    attributes: dict[str, str]
    pieces: list[tuple[str, str, int]]


def write_virtual_segments(paths: Paths, count: int) -> None:
    """Make ``run.h5`` of virtual data sets over all finalized segments, in place of an earlier one of that kind."""
    last = read_index(paths.finalized(count - 1)).identity
    if os.path.lexists(paths.path) and not _shows_segments(paths.path, count):
        raise RecordingExistsError(
            f"{paths.path!r} was made by somebody else while its segments were written, so it is left alone; move it "
            "away, and fastrec.recover(path) shows them as one"
        )
    part, identity = paths.path + ".part", msgspec.structs.replace(last, segment=-count)
    write_virtual(part, identity, [paths.finalized(number) for number in range(count)])
    os.replace(part, paths.path)


def _shows_segments(path: str, count: int) -> bool:
    """Whether a file shows segments as one, of which there are so many by now."""
    try:
        return -count <= read_index(path).identity.segment < 0
    except FastrecError:
        return False


def write_virtual(path: str, identity: Identity, files: Sequence[str], sources: bytes | None = None) -> None:
    """Make a file of virtual data sets over finished files; ``sources`` says what they are where they were merged."""
    data_sets: dict[Any, _VirtualDataset] = {}
    for file_path in files:
        _collect(file_path, os.path.relpath(file_path, os.path.dirname(path) or "."), data_sets)
    # Virtual data sets came with version 1.10 of HDF5.
    with h5py.File(path, "w", libver=("earliest", "v110"), locking=False) as file:
        set_identity(file, identity)
        if sources is not None:
            file[SOURCES] = np.frombuffer(sources, np.uint8)
        for group in ("data", "steps"):
            file.create_group(group)
        taken: dict[str, None] = {}
        for (group, *_), data_set in data_sets.items():
            name = dataset_name(group, data_set.attributes["of"], taken)
            taken[name] = None
            _make(file, name, data_set)
    add_trailer(path, SegmentIndex(FORMAT, VERSION, identity, {}))


def _collect(path: str, path_in_file: str, data_sets: dict[Any, _VirtualDataset]) -> None:
    try:
        with open_verified(path) as file:
            for group in ("data", "steps"):
                for name, source in file[group].items():
                    attributes = {key: str(value) for key, value in source.attrs.items() if key != "number"}
                    key = (group, *sorted(attributes.items()), str(source.dtype), source.shape[1:])
                    data_set = data_sets.setdefault(
                        key, _VirtualDataset(source.dtype, source.shape[1:], attributes, [])
                    )
                    data_set.pieces.append((path_in_file, f"{group}/{name}", source.shape[0]))
    except (OSError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, FastrecError):
            raise
        raise DamagedFileError(f"{path!r} can't be shown, because HDF5 can't read it: {error}") from error


def _make(file: Any, name: str, data_set: _VirtualDataset) -> None:
    shape, dtype = data_set.shape, data_set.dtype
    layout = h5py.VirtualLayout((sum(rows for _, _, rows in data_set.pieces), *shape), dtype)
    done = 0
    for path, source, rows in data_set.pieces:
        if rows:
            layout[done : done + rows] = h5py.VirtualSource(path, source, (rows, *shape), dtype)
            done += rows
    # What HDF5 shows for a file that is missing must not look like a value, where there is a way to tell.
    virtual = file.create_virtual_dataset(name, layout, fillvalue=np.nan if dtype.kind == "f" else None)
    virtual.attrs.update(data_set.attributes)
