"""Tensors of a history in an HDF5 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from fastrec._errors import DamagedFileError, RecordingExistsError, RecordingFileError, RecordingNotFoundError
from fastrec.graph._saving import copied

_NATIVE = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.complex64, torch.complex128, torch.bool)
    + (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
)


class Stored:
    """A tensor in a file, read when it is asked for."""

    __slots__ = ("dtype", "file", "name", "shape")

    def __init__(self, file: TensorFile, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.file = file
        self.name = name
        self.shape = shape
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """The size of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        array = self.file.array(self.name)
        try:
            found = torch.from_numpy(np.array(array))
            found = found if self.dtype in _NATIVE else found.view(self.dtype)
        except (TypeError, RuntimeError) as error:
            raise DamagedFileError(f"{self.file.path}: {self.name} is no {self.dtype} tensor: {error}") from error
        if found.dtype != self.dtype:
            raise DamagedFileError(f"{self.file.path}: {self.name} is of {found.dtype}, and should be of {self.dtype}")
        if found.numel() != torch.Size(self.shape).numel():
            raise DamagedFileError(f"{self.file.path}: {self.name} has not the {self.shape} that the file says")
        return found.reshape(self.shape)


class TensorFile:
    """Where tensors are written to and read from by name.

    While it is written its name ends in ``.partial``; ``finish`` gives it its own.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writing: h5py.File | None = None
        self.names: set[str] = set()

    def create(self, *, overwrite: bool) -> TensorFile:
        """Begin a new file."""
        if self.path.exists() and not overwrite:
            raise RecordingExistsError(f"{self.path} exists; give another path, or overwrite=True")
        try:
            self._writing = h5py.File(self._partial, "w")
        except OSError as error:
            raise RecordingFileError(f"{self.path} can't be written: {error}") from error
        return self

    @property
    def _partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    def put(self, name: str, value: Tensor) -> Stored:
        """Write a tensor."""
        assert self._writing is not None
        plain = copied(value).cpu().resolve_conj().resolve_neg().contiguous()
        array = plain.numpy() if value.dtype in _NATIVE else plain.reshape(-1).view(torch.uint8).numpy()
        try:
            self._writing.create_dataset(name, data=array)
        except OSError as error:
            raise RecordingFileError(f"{self.path} can't be written: {error}") from error
        self.names.add(name)
        return Stored(self, name, tuple(value.shape), value.dtype)

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write a text."""
        assert self._writing is not None
        self._writing.create_dataset(name, data=np.frombuffer(content, np.uint8))

    def finish(self) -> None:
        """Close the file, and give it its name."""
        assert self._writing is not None
        self._writing.close()
        self._writing = None
        self._partial.replace(self.path)

    def abandon(self) -> None:
        """Give up what was written so far."""
        if self._writing is not None:
            self._writing.close()
            self._writing = None
            self._partial.unlink(missing_ok=True)

    def array(self, name: str) -> Any:
        """The array of a name; only what lies in this very file is read."""
        if self._writing is not None:
            return self._writing[name][()]
        if not self.path.exists():
            raise RecordingNotFoundError(f"there is no file {self.path} any more" if self.names else f"no {self.path}")
        try:
            with h5py.File(self.path, "r") as file:
                return _dataset(file, name)[()]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:  # whatever HDF5 stumbles over
            raise DamagedFileError(f"{self.path} is no history, or not all of one: {error}") from error


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    group, found = file, None
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise KeyError(f"{name} does not lie in it")
        found = group = group[part]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise KeyError(f"{name} does not lie in it")
    return found
