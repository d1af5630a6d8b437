"""Tensors in an HDF5 file, by name: written one by one, read one by one on demand.

    file = TensorFile("pass.h5").create(overwrite=False)
    lazy = file.put("values/3", tensor)     # a LazyTensor: name, shape and dtype
    file.finish()
    lazy.read()                             # opens the file, reads this tensor, closes the file again

A file is called ``pass.h5.partial`` until it is complete, so that a pass that fails or a process that is killed leaves
nothing behind that looks like a history. Reading opens the file anew for each tensor: a history may be held for as long
as a notebook lives, and an open HDF5 file can neither be replaced on Windows nor written by another process.

A file may come from an untrusted source. So only data sets inside the file itself are read: an external link, external
storage or a virtual data set would make HDF5 open any other file that the user can read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from fastrec._errors import DamagedFileError, RecordingExistsError, RecordingFileError, RecordingNotFoundError
from fastrec._torch.tensors import outside_torch_modes

# Dtypes that NumPy has too. Values of any other (bfloat16, float8) are written as their bytes.
_NATIVE_DTYPES = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.complex64, torch.complex128, torch.bool)
    + (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
)


class LazyTensor:
    """A tensor in a file, read on demand."""

    __slots__ = ("dtype", "file", "name", "shape")

    def __init__(self, file: TensorFile, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.file = file
        self.name = name
        self.shape = shape
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        array = self.file.array(self.name)
        try:
            tensor = torch.from_numpy(np.array(array))
            tensor = tensor if self.dtype in _NATIVE_DTYPES else tensor.view(self.dtype)
        except (TypeError, RuntimeError) as error:
            raise DamagedFileError(
                f"{self.file.path}: {self.name} can't be read as {self.dtype} values: {error}"
            ) from error
        if tensor.dtype != self.dtype:
            raise DamagedFileError(
                f"{self.file.path}: {self.name} holds {tensor.dtype} values, but the file's structure says {self.dtype}"
            )
        if tensor.numel() != torch.Size(self.shape).numel():
            raise DamagedFileError(
                f"{self.file.path}: {self.name} holds {tensor.numel()} values, but the file's structure says that its "
                f"shape is {self.shape}"
            )
        return tensor.reshape(self.shape)


class TensorFile:
    """A file of named tensors; ``names`` are those that this object has written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.names: set[str] = set()
        self._writing: h5py.File | None = None

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

    def put(self, name: str, value: Tensor) -> LazyTensor:
        """Write a tensor."""
        assert self._writing is not None
        with outside_torch_modes():
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            array = (plain if value.dtype in _NATIVE_DTYPES else plain.reshape(-1).view(torch.uint8)).numpy()
        try:
            self._writing.create_dataset(name, data=array)
        except OSError as error:
            raise RecordingFileError(f"{self.path} can't be written: {error}") from error
        self.names.add(name)
        return LazyTensor(self, name, tuple(value.shape), value.dtype)

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write plain bytes."""
        assert self._writing is not None
        self._writing.create_dataset(name, data=np.frombuffer(content, np.uint8))

    def finish(self) -> None:
        """Close the file and give it its name."""
        assert self._writing is not None
        self._writing.close()
        self._writing = None
        self._partial.replace(self.path)

    def abandon(self) -> None:
        """Remove what was written so far."""
        if self._writing is not None:
            self._writing.close()
            self._writing = None
            self._partial.unlink(missing_ok=True)

    def array(self, name: str) -> Any:
        """The array of this name, as NumPy has it."""
        if self._writing is not None:
            return self._writing[name][()]
        if not self.path.exists():
            gone = f"the file {self.path} is gone" if self.names else f"there is no file {self.path}"
            raise RecordingNotFoundError(gone)
        try:
            with h5py.File(self.path, "r") as file:
                return _dataset_inside(file, name)[()]
        # h5py raises any of these when HDF5 can't make sense of the bytes.
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedFileError(f"{self.path} is not a history, or not a complete one: {error}") from error


def _dataset_inside(file: h5py.File, name: str) -> h5py.Dataset:
    """A data set inside this file, not behind a link; KeyError for anything else."""
    item: Any = file
    for part in name.split("/"):
        if not isinstance(item, h5py.Group) or not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise KeyError(f"it does not contain {name}")
        item = item[part]
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
        raise KeyError(f"it does not contain {name}")
    return item
