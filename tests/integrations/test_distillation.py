"""Distillation in plain PyTorch: a teacher without gradients, a student with, in one recorder or in two."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec import Recorder
from fastrec.predicates import module, op

STEPS = 8


class Teacher(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x)))))


def networks() -> tuple[Teacher, Teacher]:
    torch.manual_seed(4)
    return Teacher().eval(), Teacher()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(8 if n != 3 else 5, 6, generator=generator) for n in range(STEPS)]  # a smaller batch between


Kept = Callable[[], list[tuple[Tensor, Tensor]]]
"""The pairs of teacher and student values of the step that just ran."""


def distil(teacher: Teacher, student: Teacher, kept: Kept, mode: AbstractContextManager[Any]) -> list[Tensor]:
    """The loop; its losses, followed by the gradients of its last step."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    found = []
    for x in batches():
        with mode:
            target = teacher(x).clone()
        loss = F.mse_loss(student(x), target.clone())
        for wanted, value in kept():
            loss = loss + F.mse_loss(value, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return [*found, *(p.grad for p in student.parameters() if p.grad is not None)]


def by_hooks(sites: tuple[str, ...], mode: AbstractContextManager[Any]) -> list[Tensor]:
    teacher, student = networks()
    held: dict[str, dict[str, Tensor]] = {"teacher": {}, "student": {}}
    for name, net in (("teacher", teacher), ("student", student)):
        for site in sites:

            def keep(_: nn.Module, __: Any, out: Tensor, place: tuple[str, str] = (name, site)) -> None:
                held[place[0]][place[1]] = out

            net.get_submodule(site).register_forward_hook(keep)
    return distil(teacher, student, lambda: [(held["teacher"][s].clone(), held["student"][s]) for s in sites], mode)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_losses_and_gradients_equal_those_of_hooks(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    sites = ("fc1", "fc2")
    expected = by_hooks(sites, mode())
    teacher, student = networks()
    keep = module("teacher.fc?") | module("student.fc?").with_(keep_grad=True)
    with Recorder({"teacher": teacher, "student": student}, keep_module=keep) as rec:

        def kept() -> list[tuple[Tensor, Tensor]]:
            step = rec.pop()
            return [(step.stack(f"teacher.{s}")[0], step.stack(f"student.{s}")[0]) for s in sites]

        found = distil(teacher, student, kept, mode())
        assert rec.recording.n_records == 0
    assert len(found) == STEPS + 6
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7)
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(m._forward_hooks for net in (teacher, student) for m in net.modules())


def test_functional_ops_that_no_hook_can_reach() -> None:
    teacher, student = networks()
    keep = op("relu")
    with Recorder(teacher, keep_op=keep) as ours, Recorder(student, keep_op=keep, train_mode=True, retain=1) as theirs:

        def kept() -> list[tuple[Tensor, Tensor]]:
            wanted, values = ours.pop(), theirs.recording
            return [(wanted.stack(s)[0], values[s][-1].activation) for s in ("/relu", "/relu_2")]

        found = distil(teacher, student, kept, torch.no_grad())
        assert len(theirs.recording) == 2
    expected = by_hooks_on_relu(torch.no_grad())
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7)


def by_hooks_on_relu(mode: AbstractContextManager[Any]) -> list[Tensor]:
    """The same from the values before the relus, which hooks can reach."""
    teacher, student = networks()
    held: list[Tensor] = []
    for net in (teacher, student):
        for site in ("fc1", "fc2"):
            net.get_submodule(site).register_forward_hook(lambda _, __, out: held.append(F.relu(out)))

    def kept() -> list[tuple[Tensor, Tensor]]:
        values = held[-4:]
        return [(values[0], values[2]), (values[1], values[3])]

    return distil(teacher, student, kept, mode)
