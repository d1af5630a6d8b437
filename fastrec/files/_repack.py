"""Rewriting a recording as one file."""

from __future__ import annotations

import os
import uuid

import msgspec
import torch

from fastrec._errors import FastrecError
from fastrec.sinks.hdf5.copy_file import CopyOptions, Progress, write_source
from fastrec.sinks.hdf5.merged import MergedSource, open_source
from fastrec.sinks.hdf5.options import HDF5Options


class Repacked(msgspec.Struct, frozen=True):
    """The result of repacking: where the recording is, and the bytes of its files before and after."""

    path: str
    records: int
    before: int
    after: int


def repack(
    path: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    compression: str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Repacked:
    """Rewrite a recording as one file, without values that no record refers to.

    >>> import torch, fastrec
    >>> from fastrec.files import repack
    >>> model = torch.nn.Linear(4, 2)
    >>> with fastrec.Recorder(model, keep_op="linear", sink="loose.h5") as rec:
    ...     out = model(torch.ones(5, 4))
    >>> repack("loose.h5", "tight.h5", compression="gzip", dtype=torch.float16).records
    1
    >>> fastrec.load("tight.h5").stack("linear_1").dtype
    torch.float16

    Arguments:
        path: the recording: of one file, of several, or merged from others, of which everything is copied.
        to: where to write; there must be nothing yet.
        compression: "gzip", "lzf", "zstd" or "lz4", or with a level, as in "gzip:4"; by default none.
        dtype: a floating dtype to cast floating values to.
        progress: called with the bytes that were written so far, and with their total.

    Raises what ``fastrec.load`` does, OptionError for options that are not allowed, RecordingExistsError where there is
    something at ``to``.
    """
    try:
        options = HDF5Options(compression=compression, dtype=dtype)
    except FastrecError as error:
        raise type(error)(str(error).replace("HDF5Sink(", "repack(")) from None
    source = open_source(path)
    is_merged = isinstance(source, MergedSource)
    parts = source.sources() if isinstance(source, MergedSource) else [source]
    identity = parts[0].identity()
    identity = msgspec.structs.replace(
        identity, run=uuid.uuid4().hex, session=0, segment=0, rank=-1 if is_merged else identity.rank
    )
    copy_options = CopyOptions(identity, source.facts(), source.begun(), options.compression, options.dtype, progress)
    write_source(source, to, copy_options)
    before = sum(os.path.getsize(file) for part in parts for file, _ in part.paths())
    return Repacked(os.fspath(to), len(source.records()), before, os.path.getsize(to))
