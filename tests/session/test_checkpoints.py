"""A recorder takes no part in what a checkpoint counts: it runs ops in the first run alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fastrec import CaptureSpec, Recorder
from fastrec.graph import log_forward_pass


class Selective(nn.Module):
    """A checkpoint that saves products and copies, and makes a copy itself after the ops that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)

    def body(self, x: Tensor) -> Tensor:
        y = self.up(x).sin()
        return self.down(y.t().contiguous().tanh()).exp()

    def forward(self, x: Tensor) -> Any:
        aten = torch.ops.aten
        save = [aten.mm.default, aten.clone.default, aten.mul.Tensor, aten.copy_.default, aten.pow.Tensor_Scalar]
        return checkpoint(
            self.body, x, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(save)
        )


class Plain(Selective):
    """A checkpoint that runs everything again."""

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.body, x, use_reentrant=False)


def gradients(net: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    net.zero_grad()
    run().sum().backward()  # type: ignore[no-untyped-call]
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


CAPTURES = {
    "copied": CaptureSpec(),
    "cast": CaptureSpec(dtype=torch.float64),
    "transformed": CaptureSpec(transform=lambda v: v.square() * v),
    "attached": CaptureSpec(keep_grad=True),
    "attached and transformed": CaptureSpec(keep_grad=True, transform=lambda v: v.square() * v),
    "with gradients": CaptureSpec(save_gradient=True),
}


@pytest.mark.parametrize("model", [Selective, Plain])
@pytest.mark.parametrize("engine", ["eager", "static"])
@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES)
def test_gradients_through_a_checkpoint_are_what_they_are(model: Any, engine: Any, capture: CaptureSpec) -> None:
    net, x = model(), torch.randn(6, 6)
    expected = gradients(net, lambda: net(x))
    with Recorder(net, keep_op=["sin", "linear"], keep_module="up", capture=capture, engine=engine) as rec:
        for _ in range(5):
            for actual, gradient in zip(gradients(net, lambda: net(x)), expected, strict=True):
                assert torch.equal(actual, gradient)
    assert rec.recording.n_records == 20
    if capture.transform is None:
        assert torch.allclose(rec.recording.stack("/sin")[4].float(), net.up(x).sin())


def test_a_transformed_value_inside_of_a_checkpoint_trains() -> None:
    net, x = Plain(), torch.randn(6, 6)
    spec = CaptureSpec(keep_grad=True, transform=torch.square, save_raw=False)
    with Recorder(net, keep_op="sin", capture=spec) as rec:
        net(x)
        (loss,) = (record.transformed_activation for record in rec.recording)
    assert loss is not None
    loss.sum().backward()  # type: ignore[no-untyped-call]
    actual = net.up.weight.grad
    net.zero_grad()
    net.up(x).sin().square().sum().backward()
    assert actual is not None and torch.allclose(actual, net.up.weight.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [Selective, Plain])
@pytest.mark.parametrize(
    "options", [{}, {"detach_saved_tensors": False, "activation_postfunc": torch.square}], ids=["copied", "transformed"]
)
def test_a_graph_takes_no_part_in_a_checkpoint_either(model: Any, options: dict[str, Any]) -> None:
    net, x = model(), torch.randn(6, 6)
    expected = gradients(net, lambda: net(x))

    def run() -> Tensor:
        history = log_forward_pass(net, x, train_mode=True, **options)
        out: Tensor = history["output_1"].activation
        return out

    for actual, gradient in zip(gradients(net, run), expected, strict=True):
        assert torch.equal(actual, gradient)


def test_a_dispatch_mode_of_the_user_sees_the_model_alone() -> None:
    class Notes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.ops: list[Any] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.ops.append(func)
            return func(*args, **(kwargs or {}))

    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(2, 4)
    with Notes() as bare:
        net(x)
    for engine in ("eager", "static"):
        with Recorder(net, keep_op=True, engine=engine, capture=CaptureSpec(dtype=torch.float64)) as rec:
            for _ in range(5):
                with Notes() as recorded:
                    net(x)
                assert recorded.ops == bare.ops
                net(x)
        assert rec.recording.n_records == 20
