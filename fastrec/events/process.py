"""Which process recorded: its rank, its role, its worker.

    Process(rank=1, world_size=4, role="main", host="node-3")

A recording of several processes has one for each of their files. Every field is optional: a file of an earlier version
has none of them, and a process on its own has no rank.
"""

from __future__ import annotations

import msgspec


class Process(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process that wrote a file.

    ``rank`` is -1 where it is not known, and ``world_size`` 0. ``worker`` is the id of a DataLoader's worker, else -1.
    ``attempt`` counts the restarts of the job, where its launcher says so. ``role`` is the user's word for what the
    process does; by default "worker" in a DataLoader's worker, else "main".
    """

    rank: int = -1
    world_size: int = 0
    role: str = ""
    worker: int = -1
    attempt: int = 0
    host: str = ""

    def __str__(self) -> str:
        words = [self.role or "process"]
        words += [f"rank {self.rank}"] if self.rank >= 0 else []
        words += [f"worker {self.worker}"] if self.worker >= 0 else []
        return " ".join(words)
