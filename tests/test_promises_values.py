"""A recorded value is the value at that moment, and owns its memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrec import CaptureSpec, Recorder, record
from fastrec.predicates import kind
from tests.contracts.engine import EVERYTHING
from tests.helpers.naive import assert_same_events, events_of, naive_events, same_bits, seeded


class Writes(nn.Module):
    """Computes a value, then writes into it in some way."""

    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.identity = nn.Identity()
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.identity(x * 2)
        self.write(y)
        return y


def _index(y: Tensor) -> None:
    y[y > 0] = -1


def _slices(y: Tensor) -> None:
    y[..., 0] += 3
    y[:, 1:] = y[:, :-1].clone()


def _operators(y: Tensor) -> None:
    y += 1
    y -= 2
    y *= 3
    y /= 4
    y **= 2
    y %= 2
    y //= 1


def _through_numpy(y: Tensor) -> None:
    y.numpy()[:] = 7


def _through_data(y: Tensor) -> None:
    y.data.fill_(5)
    y.detach().view(-1)[0] = 9


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "methods": lambda y: y.add_(1).mul_(2).sub_(3).div_(2).clamp_(min=0).zero_(),
    "operators": _operators,
    "setitem with a mask": _index,
    "setitem with slices": _slices,
    "out": lambda y: torch.add(y, 1, out=y),
    "functions": lambda y: (F.relu(y, inplace=True), F.relu_(y), torch.sigmoid_(y), F.dropout(y, 0.5, True, True)),
    "inplace modules": lambda y: nn.Sequential(nn.ReLU(True), nn.ELU(inplace=True), nn.Hardswish(True))(y),
    "random": lambda y: y.normal_().uniform_().exponential_().bernoulli_(),
    "scatter": lambda y: y.scatter_(1, torch.zeros(3, 1, dtype=torch.long), 4.0).index_fill_(0, torch.tensor([0]), 1),
    "index put": lambda y: y.index_put_((torch.tensor([0]), torch.tensor([1])), torch.tensor(8.0)),
    "copy": lambda y: y.copy_(torch.ones_like(y)),
    "masked fill": lambda y: y.masked_fill_(y > 0, 0).masked_fill_(y <= 0, 2),
    "views": lambda y: y.view(-1).t().unsqueeze(0).add_(1),
    "split": lambda y: [part.neg_() for part in y.unbind(0)],
    "numpy": _through_numpy,
    "data": _through_data,
    "foreach": lambda y: torch._foreach_mul_([y], 3.0),
    "set": lambda y: y.set_(torch.ones(3, 4)),
    "resize": lambda y: y.resize_(2, 2),
    "swap": lambda y: torch.utils.swap_tensors(y, torch.zeros(3, 4)),
    "init": lambda y: nn.init.constant_(y, 3.0),
    "optimizer": lambda y: _step(y),
    "registered operator": lambda y: torch.ops.aten.add_.Tensor(y, 1),
    "backward": lambda y: _accumulate(y),
}


def _step(y: Tensor) -> None:
    y.requires_grad_()
    y.grad = torch.ones_like(y)
    torch.optim.SGD([y], lr=0.5).step()


def _accumulate(y: Tensor) -> None:
    leaf = torch.ones(3, 4, requires_grad=True)
    with torch.enable_grad():
        (leaf * 2).sum().backward()
    y.mul_(leaf.grad)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("capture", [CaptureSpec(), CaptureSpec(dtype=torch.float64), CaptureSpec(device="cpu")])
def test_what_is_written_later_does_not_show(name: str, capture: CaptureSpec) -> None:
    model, x = Writes(WRITES[name]), torch.randn(3, 4)
    with torch.no_grad(), seeded():
        expected = naive_events(model, lambda: model(x))
    with torch.no_grad(), Recorder(model, capture=capture, **EVERYTHING) as rec:
        for _ in range(3):
            with seeded():
                out = model(x)
            out.fill_(100)
    for number in range(3):
        found = events_of(rec.recording, number)
        assert [event.facts for event in found] == [event.facts for event in expected]
        for mine, theirs in zip(found, expected, strict=True):
            assert same_bits(mine.value, theirs.value.to(mine.value.dtype))


def test_in_place_results_are_recorded_as_they_were_after_each_write() -> None:
    model = Writes(lambda y: y.add_(1).mul_(2))
    recording = record(model, torch.ones(2), keep_op=True)
    assert [record.activation.tolist() for record in recording] == [[2, 2], [3, 3], [6, 6]]
    assert [record.ctx.func_name for record in recording] == ["mul", "add_", "mul_"]
    assert [record.ctx.layer_type for record in recording] == ["mul", "add", "mul"]


def test_an_observation_buffer_that_the_loop_uses_again() -> None:
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3, 2), nn.Identity())
    observations = np.zeros((4, 3), dtype=np.float32)
    given = torch.from_numpy(observations)
    kept = []
    keep = {**EVERYTHING, "keep_op": kind("op", "input")}
    with torch.no_grad(), Recorder(model, include_source_events=True, **keep) as rec:
        for step in range(50):
            observations[:] = step
            kept.append(model(given).clone())
            model(given).zero_()
            observations[:] = -1
    for step in range(100):
        values = {event.site: event.value for event in events_of(rec.recording, step) if event.kind != "input"}
        for site in (":in[0]", "0", "1", "1/flatten", "2:in[0]"):
            assert same_bits(values[site], torch.full((4, 3), float(step // 2))), site
        assert same_bits(values["3"], kept[step // 2]) and same_bits(values[":out"], kept[step // 2])
    inputs = [record for record in rec.recording if record.ctx.kind == "input"]
    assert [record.activation[0, 0].item() for record in inputs] == [step // 2 for step in range(100)]


STRANGE: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: torch.randn(1, 3).expand(4, 3),
    "transposed": lambda: torch.randn(3, 4).t(),
    "strided": lambda: torch.randn(8, 8)[::2, 1::3],
    "flipped": lambda: torch.randn(4).flip(0),
    "channels last": lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "conjugated": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "imaginary part": lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
    "negative view": lambda: torch._neg_view(torch.randn(3)),
    "scalar": lambda: torch.tensor(3.5),
    "empty": lambda: torch.empty(0, 3),
    "bool": lambda: torch.tensor([True, False]),
    "bfloat16": lambda: torch.randn(5).bfloat16(),
    "half": lambda: torch.randn(5).half(),
    "float8": lambda: torch.randn(5).to(torch.float8_e4m3fn),
    "complex": lambda: torch.randn(5, dtype=torch.complex128),
    "int64": lambda: torch.arange(5),
    "uint8": lambda: torch.arange(5, dtype=torch.uint8),
    "uint16": lambda: torch.arange(5).to(torch.uint16),
    "nan": lambda: torch.tensor([float("nan"), float("inf"), -0.0]),
    "large": lambda: torch.randn(300_000),
    "zero tensor": lambda: torch._efficientzerotensor(3),
    "parameter": lambda: nn.Parameter(torch.randn(3)),
    "lazy clone": lambda: torch.randn(3)._lazy_clone(),
    "offset": lambda: torch.randn(10)[3:7],
}


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = torch.zeros(1)

    def forward(self) -> Tensor:
        return self.value


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("keep", [{"keep_module": ""}, {"keep_module": lambda ctx: ctx.kind == "module_exit"}])
def test_tensors_of_all_sorts_are_copied_bit_for_bit(name: str, keep: Any) -> None:
    model = Holds()
    values = [STRANGE[name]() for _ in range(5)]
    expected = [value.detach().clone() for value in values]
    with torch.no_grad(), Recorder(model, **keep) as rec:
        for value in values:
            model.value = value
            model()
        for value in values:
            if not (value._is_zerotensor() or value.dim() and value.stride(0) == 0):
                value.zero_()
    assert all(same_bits(r.activation, e) for r, e in zip(rec.recording[""], expected, strict=True))
    assert same_bits(rec.recording.stack(""), torch.stack(expected)) or name == "float8"


def test_values_own_their_memory() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity())
    parameter = model[0].weight.untyped_storage().data_ptr()
    with torch.no_grad(), Recorder(model, **EVERYTHING) as rec:
        x = torch.randn(2, 4)
        out = model(x)
    for kept in rec.recording:
        storage = kept.activation.untyped_storage().data_ptr()
        assert storage not in (x.untyped_storage().data_ptr(), out.untyped_storage().data_ptr(), parameter)


@pytest.mark.parametrize("hand_over", [False, True])
def test_values_that_were_read_are_never_written_again(hand_over: bool) -> None:
    model = nn.Sequential(nn.Identity())
    read, expected = [], []
    with torch.no_grad(), Recorder(model, keep_module="0", **({} if hand_over else {"retain": 2})) as rec:
        for step in range(300):
            model(torch.full((3,), float(step)))
            recording = rec.pop() if hand_over else rec.recording
            read.append(recording["0"][-1].activation)
            expected.append(torch.full((3,), float(step)))
            if step % 7 == 0:
                with pytest.raises(ZeroDivisionError), rec.region():
                    model(torch.full((3,), -1.0))
                    raise ZeroDivisionError
    assert all(same_bits(a, b) for a, b in zip(read, expected, strict=True))


def test_a_recording_does_not_change_after_it_was_read() -> None:
    model = nn.Sequential(nn.Identity())
    with torch.no_grad(), Recorder(model, keep_module="0") as rec:
        model(torch.ones(2))
        early = rec.recording
        stacked = early.stack("0")
        model(torch.zeros(2))
        assert len(early) == 1 and len(rec.recording) == 2
    assert same_bits(stacked, torch.ones(1, 2)) and same_bits(early.stack("0"), stacked)


def test_writing_into_what_was_read_does_not_reach_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    before = model[0].weight.clone()
    x = torch.ones(1, 2)
    with Recorder(model, **EVERYTHING) as rec:
        expected = model(x)
        for kept in rec.recording:
            kept.activation.detach().fill_(3)
        assert same_bits(model(x), expected)
    assert same_bits(model[0].weight, before) and same_bits(x, torch.ones(1, 2))


def test_shapes_and_dtypes_that_change_at_one_site() -> None:
    model = nn.Sequential(nn.Identity())
    inputs = [torch.randn(n % 4, 3).to(dtype) for n in range(8) for dtype in (torch.float32, torch.float64)]
    with Recorder(model, keep_module="0") as rec:
        for x in inputs:
            model(x)
    assert all(same_bits(r.activation, x) for r, x in zip(rec.recording, inputs, strict=True))


def test_module_events_are_those_of_hooks_in_a_model_that_writes() -> None:
    model = Writes(_operators)
    expected = naive_events(model, lambda: model(torch.ones(3)))
    recording = record(model, torch.ones(3), **EVERYTHING)
    assert_same_events(events_of(recording), expected)
