"""Rows of one layout in one tensor."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastrec import CaptureSpec
from fastrec.sinks._blocks import Layout, RowMaker


def test_values_from_a_gpu_wait_once_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    made: list[dict[str, Any]] = []
    empty = torch.empty

    def without_pinning(shape: Any, **facts: Any) -> Tensor:
        made.append(dict(facts))
        return empty(shape, **{**facts, "pin_memory": False})

    monkeypatch.setattr(torch, "empty", without_pinning)
    gpu = torch.device("cuda", 0)
    rows = RowMaker(Layout((3,), torch.float32, gpu), CaptureSpec(device="cpu")).make(4)
    for place in range(4):
        rows.write(place, torch.full((3,), float(place)))
    assert made[0]["pin_memory"] and not waited and rows.origin == 0
    assert rows.read()[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert waited == [gpu]
