"""Values of a GPU. These tests need one; that values are waited for once is tested without one in test_blocks."""

from collections.abc import Iterator

import pytest
import torch

from fastrec import CaptureSpec, Recording
from fastrec.sinks import RAMSink
from tests.contracts.sink import PLAIN, Rig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TO_CPU = CaptureSpec(device="cpu")
TO_HALF = CaptureSpec(device="cpu", dtype=torch.bfloat16)


@pytest.fixture
def rig() -> Rig:
    return Rig(RAMSink())


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("spec", [PLAIN, TO_CPU, TO_HALF], ids=["stay", "to_cpu", "to_cpu_half"])
@pytest.mark.parametrize("shape", [(4, 8), (), (600, 700)], ids=str)
def test_values_of_a_gpu_come_back(rig: Rig, spec: CaptureSpec, shape: tuple[int, ...]) -> None:
    values = [torch.randn(shape, device="cuda") for _ in range(20)]
    for value in values:
        rig.one_pass(value, spec=spec)
    expected = torch.stack(values).to(device=spec.device, dtype=spec.dtype)
    stacked = rig.recording().stack("a")
    assert stacked.device.type == ("cpu" if spec.device else "cuda") and torch.equal(stacked, expected)
    assert torch.equal(rig.recording()[7].activation, expected[7])


@pytest.mark.usefixtures("waiting_is_an_error")
@pytest.mark.parametrize("spec", [PLAIN, TO_CPU, TO_HALF], ids=["stay", "to_cpu", "to_cpu_half"])
def test_recording_waits_for_no_value(rig: Rig, spec: CaptureSpec) -> None:
    value = torch.zeros(64, 64, device="cuda")
    for i in range(200):
        value.fill_(i)
        rig.one_pass(value, value.t(), spec=spec)
    value.fill_(-1)
    torch.cuda.set_sync_debug_mode("default")
    assert rig.recording().stack("a")[::2, 0, 0].tolist() == list(range(200))


def test_rows_that_are_let_go_while_they_arrive_are_not_given_away(rig: Rig) -> None:
    value = torch.zeros(256, 256, device="cuda")
    kept = []
    for i in range(300):
        value.fill_(i)
        rig.one_pass(value, spec=TO_CPU)
        assert isinstance(rig.sink, RAMSink)
        taken = Recording(rig.sink.take())
        if i % 10 == 0:
            kept.append((i, taken))
    assert all(bool((taken.stack("a") == i).all()) for i, taken in kept)
