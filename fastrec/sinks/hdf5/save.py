"""One finished file of a recording, or of a part of it, that may lie in RAM: ``recording.save("run.h5")``.

save_part(part, "run.h5", {"header": catalog.header, "began": seconds})
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

from fastrec._errors import FastrecWarning
from fastrec.recording._source import Source
from fastrec.sinks.hdf5.copy_file import CopyOptions, write_source
from fastrec.sinks.hdf5.layout import Identity


def save_part(part: Source, path: str | os.PathLike[str], facts: Mapping[str, Any], *, rank: int = -1) -> None:
    """Write a part of a recording, at a path at which there is nothing yet.

    Arguments:
        part: what to write.
        path: where; it ends in .h5 or .hdf5.
        facts: what its recorder said of the session.
        rank: of the process that recorded it.
    """
    passes, records = part.passes(), part.records()
    specs = [part.catalog.specs[part.catalog.metas[meta].spec] for meta in set(records["meta"].tolist())]
    if any(spec.save_gradient for spec in specs):
        warnings.warn(
            f"{os.fspath(path)!r} has the values and not the gradients, which a file can't keep; save those by "
            'torch.save(recording.stack(key, part="gradient"), ...)',
            FastrecWarning,
            stacklevel=5,
        )
    begun = max(part.n_passes(), int(passes["pass_index"].max(initial=-1)) + 1)
    identity = Identity(uuid.uuid4().hex, 0, 0, rank, os.getpid())
    write_source(part, path, CopyOptions(identity, facts, begun))
