"""Stopping a pass from inside of a predicate."""

from __future__ import annotations

from typing import NoReturn


class Halt(BaseException):
    """Unwinds a pass; no Exception, so that no ``except Exception`` of the model swallows it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def halt(reason: str = "halted by a predicate") -> NoReturn:
    """Stop the pass at the event that a predicate is asked about; what was kept before stays.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    >>> def until_relu(ctx):
    ...     return fastrec.halt("saw a relu") if ctx.layer_type == "relu" else True
    >>> recording = fastrec.record(model, torch.zeros(1, 4), keep_op=until_relu)
    >>> [record.ctx.label for record in recording], recording.halted
    (['linear_1'], {0: 'saw a relu'})

    Arguments:
        reason: told by ``recording.halted``.
    """
    raise Halt(reason)
