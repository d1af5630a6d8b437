"""One file that shows the data of several segments as one, to tools that know HDF5 and not fastrec."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import h5py
import msgspec
import numpy as np

from fastrec._errors import DamagedFileError, FastrecError
from fastrec.sinks.hdf5.layout import FORMAT, SOURCES, VERSION, Identity, SegmentIndex
from fastrec.sinks.hdf5.paths import Paths
from fastrec.sinks.hdf5.structure import add_trailer, dataset_name, map_of, opened_file, set_identity


class _Alike(msgspec.Struct):
    """Data sets of several segments that hold values of the same site, or steps of the same phase."""

    dtype: Any
    shape: tuple[int, ...]
    attributes: dict[str, str]
    parts: list[tuple[str, str, int]]


def write_together(paths: Paths, count: int) -> None:
    """Make ``run.h5`` of virtual data sets over finished segments, in place of an earlier one of that kind."""
    last = map_of(paths.sealed(count - 1)).identity
    part, identity = paths.path + ".part", msgspec.structs.replace(last, segment=-count)
    show(part, identity, [paths.sealed(number) for number in range(count)])
    os.replace(part, paths.path)


def show(part: str, identity: Identity, shown: Sequence[str], sources: bytes | None = None) -> None:
    """Make a file of virtual data sets over finished files; ``sources`` tells what they are where they were merged."""
    found: dict[Any, _Alike] = {}
    for path in shown:
        _collect(path, os.path.relpath(path, os.path.dirname(part) or "."), found)
    with h5py.File(part, "w", libver=("earliest", "v110"), locking=False) as file:
        set_identity(file, identity)
        if sources is not None:
            file[SOURCES] = np.frombuffer(sources, np.uint8)
        for group in ("data", "steps"):
            file.create_group(group)
        taken: dict[str, None] = {}
        for (group, *_), one in found.items():
            name = dataset_name(group, one.attributes["of"], taken)
            taken[name] = None
            _show(file, name, one)
    add_trailer(part, SegmentIndex(FORMAT, VERSION, identity, {}))


def _collect(path: str, name_in_file: str, found: dict[Any, _Alike]) -> None:
    try:
        with opened_file(path) as file:
            for group in ("data", "steps"):
                for name, made in file[group].items():
                    attributes = {key: str(value) for key, value in made.attrs.items() if key != "number"}
                    key = (group, *sorted(attributes.items()), str(made.dtype), made.shape[1:])
                    one = found.setdefault(key, _Alike(made.dtype, made.shape[1:], attributes, []))
                    one.parts.append((name_in_file, f"{group}/{name}", made.shape[0]))
    except (OSError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, FastrecError):
            raise
        raise DamagedFileError(f"{path!r} can't be shown, as HDF5 does not read it: {error}") from error


def _show(file: Any, name: str, one: _Alike) -> None:
    layout = h5py.VirtualLayout((sum(rows for _, _, rows in one.parts), *one.shape), one.dtype)
    done = 0
    for path, source, rows in one.parts:
        if rows:
            layout[done : done + rows] = h5py.VirtualSource(path, source, (rows, *one.shape), one.dtype)
            done += rows
    # What HDF5 shows for a segment that is missing must not look like a value.
    made = file.create_virtual_dataset(name, layout, fillvalue=np.nan if one.dtype.kind == "f" else None)
    made.attrs.update(one.attributes)
