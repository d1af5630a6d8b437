"""Which process this is, as torch.distributed, the launcher's environment or the DataLoader says.

    current_process()                      # Process(rank=1, world_size=4, role='main', host='node-3')
    current_process(role="rollout")

A launcher may open the recorder before the process group exists, so this is asked when something is written, not when
the sink is made. A rank that nobody tells is -1, never 0: two processes of rank 0 would pass for one.
"""

from __future__ import annotations

import os
import socket

import msgspec
from torch import distributed
from torch.utils.data import get_worker_info

from fastrec.events.process import Process

RANK_VARIABLES = (
    ("RANK", "WORLD_SIZE"),  # torchrun, accelerate
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
)

ATTEMPT_VARIABLES = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")

UNNAMED_ROLE = "default"
"""What torchrun calls a role that nobody named."""


def current_process(role: str | None = None, earlier: Process | None = None) -> Process:
    """What is known of this process; ``earlier`` is what was known when its session began.

    A worker of a DataLoader that ends is none any more since torch 2.14, and its last passes are written then.
    """
    rank, world_size = _rank_and_world_size()
    worker = get_worker_info()
    if worker is None and earlier is not None and earlier.worker >= 0:
        return msgspec.structs.replace(earlier, rank=rank, world_size=world_size)
    attempt = next((number for name in ATTEMPT_VARIABLES if (number := _number(name)) >= 0), 0)
    launcher_role = os.environ.get("ROLE_NAME", UNNAMED_ROLE)
    if role is None and worker is not None:
        role = "worker"
    elif role is None:
        role = "main" if launcher_role == UNNAMED_ROLE else launcher_role
    worker_id = worker.id if worker is not None else -1
    return Process(rank, world_size, role, worker_id, attempt, socket.gethostname())


def _rank_and_world_size() -> tuple[int, int]:
    """The rank, -1 where it is not known, and the size of the world, 0 where it is not known."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    for rank_name, size_name in RANK_VARIABLES:
        if (rank := _number(rank_name)) >= 0:
            return rank, max(0, _number(size_name))
    # Lightning tells its children only these two. They are enough on the first node, and where each node has as many.
    node, local, n_local = _number("NODE_RANK"), _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE")
    if local >= 0 and (node == 0 or (node > 0 and n_local > 0)):
        return node * max(n_local, 0) + local, max(0, _number("WORLD_SIZE"))
    return -1, 0


def _number(name: str) -> int:
    """A variable of the environment as a number from 0 up, else -1."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else -1
