"""What can't be recorded is refused when the session opens, or when a value is kept."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import FastrecWarning, Recorder, record
from tests.models import mlp


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(mlp())


def traced() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(mlp(), torch.randn(2, 4))


def exported() -> Any:
    return torch.export.export(mlp(), (torch.randn(2, 4),))


def compiled_in_place() -> nn.Module:
    model = mlp()
    model.compile(backend="eager")
    return model


def compiled_forward() -> nn.Module:
    model = mlp()
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def parallel() -> nn.Module:
    model = nn.DataParallel(mlp())
    model.device_ids = [0, 1]
    return model


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (scripted, "ScriptModule, which runs outside of Python; record the module it was scripted from"),
    "traced": (traced, "ScriptModule"),
    "exported program": (exported, "ExportedProgram (record the module that it was exported from), not a torch.nn"),
    "exported module": (lambda: exported().module(), "comes from torch.export"),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), "compiled with torch.compile"),
    "compiled in place": (compiled_in_place, "compiled with torch.compile"),
    "compiled forward": (compiled_forward, "compiled with torch.compile"),
    "data parallel": (parallel, "DataParallel over 2 devices"),
    "meta": (lambda: mlp().to("meta"), "lies on the meta device"),
    "a function": (lambda: torch.relu, "is a builtin_function_or_method, not a torch.nn.Module"),
    "a class": (lambda: nn.Linear, "is a class (Linear; make an instance), not a torch.nn.Module"),
    "none": (lambda: None, "is a NoneType, not a torch.nn.Module"),
    "an empty dict": (dict, "the dict of models is empty"),
    "a dict of something": (lambda: {"actor": 3}, "the model 'actor' is a int, not a torch.nn.Module"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_recorded_are_refused_at_the_start(name: str) -> None:
    make, message = MODELS[name]
    model, call = make(), nn.Module.__call__
    with pytest.raises(fastrec.FastrecError, match=re.escape(message)) as caught:
        with Recorder(model, keep_op="relu", engine="eager"):
            raise AssertionError("the block must not begin")
    assert isinstance(caught.value, TypeError)
    assert nn.Module.__call__ is call


def test_a_refused_root_is_named() -> None:
    with pytest.raises(TypeError, match="the model 'critic' is a ScriptModule"):
        Recorder({"actor": mlp(), "critic": scripted()}, keep_op="relu").__enter__()


@pytest.mark.parametrize("name", ["", "a.b", "0", 3])
def test_names_of_roots_are_plain_words(name: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name!r} can't be the name of a root; give a plain word")):
        Recorder({name: mlp()}, keep_op="relu")


def test_data_parallel_over_one_device_is_recorded() -> None:
    recording = record(nn.DataParallel(mlp()), torch.randn(2, 4), keep_op="tanh")
    assert [r.ctx.site for r in recording] == ["1/tanh"]


class Makes(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        made = self.function(x)
        return x + 1 + 0 * (made is None)


class Wrapped(torch.Tensor):
    """Holds its values in another tensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapped":
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func}")


VALUES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sparse": (lambda x: x.to_sparse(), "sparse"),
    "sparse rows": (lambda x: x.to_sparse_csr(), "sparse"),
    "meta": (lambda x: torch.ones(3, device="meta"), "meta"),
    "nested": (lambda x: torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged), "nested"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantized"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("after", [False, True])
def test_values_that_cannot_be_copied_are_refused_where_they_are_kept(name: str, after: bool) -> None:
    make, kind = VALUES[name]
    outer = nn.Sequential(Makes(make), nn.Tanh())
    x = torch.randn(2, 2)
    assert [r.ctx.site for r in record(outer, x, keep_op=["tanh"])] == ["1/tanh"]
    with Recorder(outer, keep_op=True) as rec:
        if after:
            outer[1](x)
        with pytest.raises(ValueError, match=f"(?i){kind}.* can't be recorded as it is"):
            outer(x)
        outer[1](x)
    assert [r.ctx.site for r in rec.recording] == ["1/tanh"] * (1 + after)


def test_a_value_of_an_unknown_subclass_is_refused() -> None:
    class Gives(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Wrapped(x)

    with pytest.raises(ValueError, match="Wrapped can't be recorded as it is"):
        record(Gives(), torch.randn(2), keep_module="")


def test_an_error_of_a_tap_reaches_the_user_though_the_model_swallows_it() -> None:
    class Swallows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return x.to_sparse().to_dense() + 1
            except Exception:
                return x.tanh()

    with Recorder(Swallows(), keep_op=True) as rec:
        with pytest.raises(ValueError, match="sparse"):
            rec.log(torch.randn(2, 2))
    assert len(rec.recording) == 0


def test_no_pass_at_all_is_a_warning() -> None:
    model = mlp()
    with pytest.warns(FastrecWarning, match="no pass was recorded: the model was not called"):
        with Recorder(model, keep_op="tanh"):
            mlp()(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_op": "rleu"}, "keep_op: 'rleu' matched no op type that ran; did you mean 'relu'?"),
        ({"keep_op": ["relu", "conv*"]}, "keep_op: 'conv*' matched no op type that ran; there are 'linear', 'relu'"),
        ({"keep_module": "encoder.0"}, "keep_module: 'encoder.0' matched no module address; there are '', '0', '1'"),
    ],
)
def test_globs_that_matched_nothing_are_told_with_near_ones(options: Any, message: str) -> None:
    with pytest.warns(FastrecWarning, match=re.escape(message)):
        record(mlp(), torch.randn(2, 4), **options)


def test_a_module_that_was_not_called_is_told() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.warns(FastrecWarning, match="keep_module: 'unused' matched 'unused', which was not called in any pass"):
        record(Skips(), torch.randn(2, 4), keep_module=["used", "unused"])
    record(Skips(), torch.randn(2, 4), keep_module="used")


class Unmade(nn.Module):
    """Forgets to call ``super().__init__``."""

    def __init__(self) -> None:
        pass


def test_a_module_that_nobody_watches_fails_as_without_a_recorder() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with Recorder(model, keep_op="linear"):
        model(torch.ones(1, 3))
        with pytest.raises(AttributeError, match="no attribute '_backward_hooks'"):
            Unmade()(torch.ones(3))
