"""How a file is written."""

from __future__ import annotations

import resource
from importlib.util import find_spec
from typing import Any

import msgspec
import torch

from fastrec._errors import MissingExtraError, OptionError
from fastrec._version import DISTRIBUTION

COMPRESSIONS = ("gzip", "lzf", "zstd", "lz4")


class HDF5Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is written; ``HDF5Sink`` describes each option."""

    block_bytes: int = 2 << 20
    queue_bytes: int = 64 << 20
    segment_bytes: int = 1 << 30
    flush_seconds: float = 1.0
    flush_rows: int | None = None
    durable: bool = False
    compression: str | None = None
    dtype: torch.dtype | None = None
    overwrite: bool = False
    append: bool = False
    locking: bool = True

    def __post_init__(self) -> None:
        for name, least in (("block_bytes", 1), ("queue_bytes", 1), ("segment_bytes", 1 << 20)):
            self._check(name, _is_whole(getattr(self, name), least), f"give a whole number of bytes from {least} up")
        for name in ("durable", "overwrite", "append", "locking"):
            self._check(name, isinstance(getattr(self, name), bool), "give True or False")
        self._check("flush_seconds", _is_duration(self.flush_seconds), "give a number of seconds above 0")
        self._check(
            "flush_rows",
            self.flush_rows is None or _is_whole(self.flush_rows, 1),
            "give a number of records from 1 up, or None",
        )
        self._check(
            "dtype",
            self.dtype is None or _is_floating(self.dtype),
            "give a floating dtype such as torch.float16, to which floating values are cast, or None",
        )
        self._check(
            "compression",
            self.compression is None or _is_compression(self.compression),
            f"give {' or '.join(map(repr, COMPRESSIONS))}, with a level as in 'gzip:4' if you like, or None",
        )
        if (self.compression or "").partition(":")[0] in ("zstd", "lz4") and find_spec("hdf5plugin") is None:
            raise MissingExtraError(
                f"HDF5Sink(compression={self.compression!r}) needs hdf5plugin, which is not installed; "
                f"install it with pip install '{DISTRIBUTION}[zstd]'"
            )
        if self.overwrite and self.append:
            raise OptionError("HDF5Sink(overwrite=True, append=True): one removes what is there, one continues it")

    def _check(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise OptionError(f"HDF5Sink({name}={getattr(self, name)!r}): {allowed}")

    def room(self) -> int:
        """The bytes that one file has room for, within the limit that this process has for the size of a file."""
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return self.segment_bytes if limit < 0 else max(1 << 16, min(self.segment_bytes, limit // 4))


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


def _is_compression(value: Any) -> bool:
    name, colon, level = value.partition(":") if isinstance(value, str) else ("", "", "")
    return name in COMPRESSIONS and (not colon or (level.isdecimal() and name in ("gzip", "zstd")))
