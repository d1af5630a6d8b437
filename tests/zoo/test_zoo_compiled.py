"""Published models, compiled, give the records of the eager ones; a few each time, many with ``-m zoo``."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from naive import tensors_in

from fastrec import Recorder
from fastrec.predicates import kind, structural
from tests.zoo.language import language_models

TINY = ["Bert (encoder)", "ViT (vision)"]
EVERYTHING = {
    "keep_op": kind("op") & ~structural(lambda ctx: ctx.site.count("/") > 1),
    "keep_module": kind("module_enter", "module_exit"),
}


@pytest.fixture(autouse=True)
def _one_seed_and_fresh_code() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.random.fork_rng(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield
    torch._dynamo.reset()


def told(record: Any) -> tuple[Any, ...]:
    ctx = record.ctx
    return ctx.site, ctx.label, ctx.op_index, ctx.event_index, ctx.module_stack, ctx.tensor_shape, ctx.tensor_dtype


def check(make: Callable[[], tuple[Any, Any, Any]]) -> None:
    """What is recorded is what the eager engine records, in its order; what is left out is told."""
    model, args, kwargs = make()
    twin = copy.deepcopy(model.eval())
    with Recorder(twin, **EVERYTHING) as eager, torch.random.fork_rng():
        expected = twin(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    compiled = torch.compile(model, backend="aot_eager")
    with warnings.catch_warnings(record=True) as caught, Recorder(compiled, **EVERYTHING) as rec:
        warnings.simplefilter("always")
        out = compiled(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    found = {told(record): record for record in rec.recording}
    kept = [record for record in eager.recording if told(record) in found]
    assert [told(record) for record in kept] == [told(record) for record in rec.recording]
    assert len(kept) == len(eager.recording) or any("not recorded, because" in str(w.message) for w in caught)
    assert len(kept) > 0.9 * len(eager.recording)
    for record in kept:
        _assert_close(found[told(record)].activation, record.activation)
    for (_, one), (_, other) in zip(tensors_in(out), tensors_in(expected), strict=True):
        _assert_close(one, other)


def _assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", TINY)
def test_tiny_published_models_are_recorded_compiled(name: str) -> None:
    check(dict(language_models())[name])


def _many() -> list[tuple[str, Any]]:
    try:
        from tests.zoo.vision import timm_models, torchvision_models

        vision = [*list(torchvision_models())[::6], *list(timm_models())[::8]]
    except ImportError:  # only the environment of `make test-zoo` has them
        vision = []
    return [*list(language_models())[::4], *vision]


@pytest.mark.zoo
@pytest.mark.parametrize("index", range(45))
def test_published_models_are_recorded_compiled(index: int) -> None:
    models = _many()
    if index >= len(models):
        pytest.skip("fewer models are installed")
    name, make = models[index]
    print(name)  # shown where it fails
    check(make)
