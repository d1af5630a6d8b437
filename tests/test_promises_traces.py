"""Recording changes nothing that a model or its user could notice, and leaves nothing behind."""

import copy
import io
import pickle
import random
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec import CaptureSpec, Recorder, record
from fastrec.predicates import module, op
from tests.contracts.engine import EVERYTHING, _attributes
from tests.helpers.models import MODELS, Attends, mlp
from tests.helpers.naive import same_bits, seeded


class Fails(nn.Module):
    """Raises what it is told to, some calls down."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Raises())

    def forward(self, x: Tensor, error: type[BaseException] | None = None) -> Tensor:
        self.body[2].error = error
        return self.body(x)


class Raises(nn.Module):
    error: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.error:
            raise self.error("as told")
        return x


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("keep", [EVERYTHING, {"keep_module": "body"}])
def test_nothing_is_left_after_an_exception(error: type[BaseException], keep: Any) -> None:
    model, x = Fails(), torch.randn(2, 4)
    model(x)
    call, attributes = nn.Module.__call__, _attributes(model)
    with pytest.raises(error, match="as told"), Recorder(model, **keep) as rec:
        model(x)
        model(x, error)
    assert nn.Module.__call__ is call
    assert torch._C._len_torch_function_stack() == 0
    assert [a for a in _attributes(model) if a[1] != "error"] == [a for a in attributes if a[1] != "error"]
    assert {record.ctx.pass_index for record in rec.recording} == {0}
    with Recorder(model, **keep) as again:
        model(x)
    assert len(again.recording) == len(rec.recording)


def test_an_exception_keeps_its_kind_and_its_cause() -> None:
    model, x = Fails(), torch.randn(2, 4)
    with Recorder(model, keep_op="tanh"):
        with pytest.raises(LookupError) as caught:
            model(x, LookupError)
        assert caught.value.args == ("as told",) and caught.value.__cause__ is None
        model(x)


def test_random_states_are_untouched() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    states = []
    for recorded in (False, True):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        if recorded:
            record(model, torch.ones(2, 4), keep_op=True, keep_module=True, capture=CaptureSpec(keep_grad=True))
        else:
            model(torch.ones(2, 4))
        states.append([torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)), random.random()])
    assert torch.equal(states[0][0], states[1][0]) and torch.equal(states[0][1], states[1][1])
    assert states[0][2] == states[1][2]


def test_flags_modes_and_gradients_stay() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    model[1].eval()
    flags = [(p.requires_grad, p.grad) for p in model.parameters()], [m.training for m in model.modules()]
    with Recorder(model, keep_op=True, train_mode=True) as rec:
        model(torch.randn(2, 4))
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        rec.recording.stack("1/tanh")
    assert ([(p.requires_grad, p.grad) for p in model.parameters()], [m.training for m in model.modules()]) == flags


def test_hooks_stay_and_run_once() -> None:
    model, seen = mlp(), []
    model[0].register_forward_hook(lambda *_: seen.append("out"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("in"))
    model[0].weight.register_hook(lambda gradient: seen.append("gradient"))
    with Recorder(model, **EVERYTHING):
        model(torch.randn(2, 4)).sum().backward()
    assert seen == ["in", "out", "gradient"]


def test_somebody_elses_patch_of_module_calls_stays() -> None:
    original, seen = nn.Module.__call__, []

    def patched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(module).__name__)
        return original(module, *args, **kwargs)

    nn.Module.__call__ = patched
    try:
        model = mlp()
        recording = record(model, torch.randn(2, 4), keep_op="tanh", keep_module="0")
        assert nn.Module.__call__ is patched
    finally:
        nn.Module.__call__ = original
    assert seen == ["Sequential", "Linear", "Tanh", "Linear", "ReLU", "Linear"]
    assert [r.ctx.site for r in recording] == ["0", "1/tanh"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_stored_and_copied_as_it_is_without_a_recorder(name: str) -> None:
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape)
    with Recorder(model, **EVERYTHING) as rec:
        with seeded():
            model(x.clone())
        seen = len(rec.recording)
        copied = copy.deepcopy(model)
        stored = io.BytesIO()
        torch.save(model.state_dict(), stored)
        if name not in ("nested",):  # its functions can't be pickled
            assert pickle.loads(pickle.dumps(model)) is not model
        with seeded():
            copied(x.clone())
        assert len(rec.recording) == seen
    assert _types(copied) == _types(model)


def _types(model: nn.Module) -> list[Any]:
    return [(type(module), sorted(vars(module))) for module in model.modules()]


def test_target_networks_do_not_report() -> None:
    actor = mlp()
    with Recorder({"actor": actor}, keep_module="actor") as rec:
        target = copy.deepcopy(actor)
        for _ in range(3):
            actor(torch.randn(2, 4))
            with torch.no_grad():
                target(torch.randn(2, 4))
                for mine, theirs in zip(target.parameters(), actor.parameters(), strict=True):
                    mine.lerp_(theirs, 0.1)
    assert len(rec.recording) == 3


def test_a_transform_may_call_a_part_of_the_model() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 4)
    with Recorder(model, keep_op=op("tanh").with_(transform=model[2]), keep_module=True) as first:
        keep = module("1").with_(transform=lambda value: model[2](value) + 0)
        with Recorder(model, keep_op=True, keep_module=keep) as second:
            out = model(x)
    assert [r.ctx.site for r in first.recording] == ["0", "1/tanh", "1", "2", ":out"]
    assert [r.ctx.site for r in second.recording] == ["0/linear", "1/tanh", "1", "2/linear"]
    assert torch.equal(first.recording["1/tanh"][0].transformed_activation, out)
    assert torch.equal(second.recording["1"][0].transformed_activation, out)
    assert [r.ctx.event_index for r in second.recording] == [2, 5, 6, 8]


def test_predicates_may_use_torch() -> None:
    model, x = mlp(), torch.randn(3, 4)

    def large(ctx: Any) -> bool:
        return bool(torch.tensor(ctx.tensor_shape).prod() > 7)

    expected = [r.ctx.label for r in record(model, x, **EVERYTHING)]
    with Recorder(model, **EVERYTHING) as first, Recorder(model, keep_op=large, keep_module=large) as second:
        model(x)
    assert [r.ctx.label for r in first.recording] == expected
    assert [r.ctx.label for r in second.recording] == [r for r in expected if r not in ("linear_3", "4:1", ":out:1")]


def test_a_closed_recorder_lets_go_of_the_model_with_its_recording_kept() -> None:
    model = mlp()
    with Recorder(model, keep_op=True) as rec:
        model(torch.randn(2, 4))
    recording, gone = rec.recording, weakref.ref(model)
    del rec, model
    import gc

    gc.collect()
    assert gone() is None and len(recording) == 5


def test_other_threads_are_not_watched_longer_than_their_pass() -> None:
    model, entered, go = mlp(), threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        entered.set()
        assert go.wait(10)

    model[2].register_forward_hook(wait)
    out: list[Tensor] = []
    thread = threading.Thread(target=lambda: out.append(model(torch.ones(1, 4))))
    with Recorder(model, keep_op=True) as rec:
        thread.start()
        assert entered.wait(10)
    go.set()
    thread.join()
    assert out[0].shape == (1, 2)
    assert {r.ctx.pass_index for r in rec.recording} <= {0}


def test_an_opened_composite_draws_the_same_random_numbers() -> None:
    model, x = Attends(), torch.randn(2, 3, 8)
    with seeded(4):
        expected, after = model(x), torch.rand(2)
    with seeded(4):
        out = record(model, x, keep_op=["dropout", "softmax"], return_output=True)[0]
        assert same_bits(out, expected) and same_bits(torch.rand(2), after)
