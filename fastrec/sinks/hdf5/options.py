"""The options of ``HDF5Sink``, declared once and checked."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from fastrec._errors import OptionError
from fastrec._optional import require
from fastrec.sinks.hdf5.system import limit

COMPRESSIONS = ("gzip", "lzf", "zstd", "lz4")

MIN_SEGMENT_BYTES = 1 << 20


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
    role: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("block_bytes", 1), ("queue_bytes", 1), ("segment_bytes", MIN_SEGMENT_BYTES)):
            self._check(name, _is_count(getattr(self, name), least), f"give a whole number of bytes from {least} up")
        for name in ("durable", "overwrite", "append", "locking"):
            self._check(name, isinstance(getattr(self, name), bool), "give True or False")
        self._check("flush_seconds", _is_duration(self.flush_seconds), "give a number of seconds above 0")
        self._check(
            "flush_rows",
            self.flush_rows is None or _is_count(self.flush_rows, 1),
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
        self._check(
            "role",
            self.role is None or _is_word(self.role),
            "give a word for what this process does, such as 'rollout', or None",
        )
        if (self.compression or "").partition(":")[0] in ("zstd", "lz4"):
            require("hdf5plugin", extra="zstd", what=f"HDF5Sink(compression={self.compression!r})")
        if self.overwrite and self.append:
            raise OptionError(
                "HDF5Sink(overwrite=True, append=True): overwrite removes an earlier recording and append continues "
                "it; give one of them"
            )

    def segment_room(self) -> int:
        """How many bytes of values one file has room for, within the limit that the process has for a file's size."""
        most = limit("FSIZE")
        return self.segment_bytes if most is None else max(1 << 16, min(self.segment_bytes, most // 4))

    def _check(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise OptionError(f"HDF5Sink({name}={getattr(self, name)!r}): {allowed}")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


def _is_compression(value: Any) -> bool:
    name, colon, level = value.partition(":") if isinstance(value, str) else ("", "", "")
    return name in COMPRESSIONS and (not colon or (level.isdecimal() and name in ("gzip", "zstd")))
