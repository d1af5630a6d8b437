"""What depends on the version of torch: an error for one that is too old, and ops that torch runs for itself."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastrec import FastrecError, Recorder, record
from fastrec._errors import UnsupportedModelError
from fastrec._torch import dynamo
from fastrec._torch.versions import OLDEST_COMPILED_TORCH, OLDEST_TORCH, TORCH_VERSION, check_torch, version_of
from fastrec.graph import log_forward_pass


@pytest.mark.parametrize("version", ["1.13.1", "2.4.1+cpu", f"{OLDEST_TORCH[0]}.{OLDEST_TORCH[1] - 1}.0"])
def test_a_torch_that_is_too_old_is_refused_by_its_version(version: str) -> None:
    with pytest.raises(
        ImportError, match=rf"torch {version[:4]}.* too old for fastrec; install 2\.\d+ or later"
    ) as info:
        check_torch(version)
    assert isinstance(info.value, FastrecError)


def test_other_versions_are_taken() -> None:
    for version in (torch.__version__, "2.6.0", "2.15.0a0+git1234", "3.0.0"):
        check_torch(version)
    assert version_of("2.15.0a0+git1234") == (2, 15)


def test_the_import_of_fastrec_says_that_torch_is_too_old() -> None:
    script = "import torch; torch.__version__ = '2.4.1+cpu'; import fastrec"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (
        result.stderr.rstrip()
        .splitlines()[-1]
        .startswith("fastrec._errors.UnsupportedTorchError: torch 2.4.1+cpu is installed, which is too old")
    )


class Checkpointed(nn.Module):
    """Makes tensors as checkpointing may do for itself, where it does so or elsewhere."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.reentrant = reentrant
        self.checkpoints = True

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpoints:
            x = checkpoint(self.body, x, use_reentrant=self.reentrant)
        return torch.empty(3, 4).fill_(2) + x

    def body(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.ones_like(x)


SITES = ["linear/linear", "/oneslike", "/add"]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("engine", ["eager", "static"])
def test_tensors_that_a_model_makes_are_told_from_those_of_checkpointing(engine: str, reentrant: bool) -> None:
    model, x = Checkpointed(reentrant=reentrant), torch.randn(3, 4, requires_grad=True)
    with Recorder(model, keep_op=True, engine=engine) as rec:
        for _ in range(5):
            model(x).sum().backward()
    for index in range(5):
        records = list(rec.recording.iter_pass(index))
        assert [record.ctx.site for record in records] == [*SITES, "/empty", "/fill", "/add_2"]


def test_they_are_told_apart_at_a_place_where_the_model_has_made_one_before() -> None:
    model, x = Checkpointed(reentrant=False), torch.randn(3, 4, requires_grad=True)
    with Recorder(model, keep_op=True) as rec:
        for index in range(6):
            model.checkpoints = index % 3 == 2
            model(x).sum().backward()
    for index in range(6):
        sites = [record.ctx.site for record in rec.recording.iter_pass(index)]
        rest = ["/empty", "/fill", "/add_2" if index % 3 == 2 else "/add"]
        assert sites == [*(SITES if index % 3 == 2 else []), *rest]


@pytest.mark.parametrize("options", [{"track_parents": True}, {"include_source_events": True}])
def test_parents_and_sources_leave_them_out_too(options: dict[str, Any]) -> None:
    model, x = Checkpointed(reentrant=False), torch.randn(3, 4, requires_grad=True)
    sites = [r.ctx.site for r in record(model, x, keep_op="*", **options) if r.ctx.kind == "op"]
    assert sites == [*SITES, "/empty", "/fill", "/add_2"]


def test_the_graph_leaves_them_out_too() -> None:
    history = log_forward_pass(Checkpointed(reentrant=False), torch.randn(3, 4, requires_grad=True))
    assert [op.layer_type for op in history.operations if op.layer_type == "empty"] == ["empty"]


@pytest.mark.parametrize("run", [torch.autograd.backward, Tensor.backward])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_in_a_region_is_no_event(run: Any, reentrant: bool) -> None:
    model = nn.Linear(4, 4)
    with Recorder(model, keep_op=True) as rec:
        for _ in range(4):
            with rec.region("train"):
                loss = checkpoint(model, X, use_reentrant=reentrant).sum()
                run(loss)
                model(X)
    for index in range(4):
        sites = [record.ctx.site for record in rec.recording.iter_pass(index)]
        assert sites == ["/linear", ":train/sum", "/linear"]


X = torch.randn(3, 4, requires_grad=True)


def test_torch_has_its_own_backward_function_after_the_block() -> None:
    function = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    model = nn.Linear(4, 4)
    with Recorder(model, keep_op=True), Recorder(model, keep_op=True):
        model(X)
    assert torch.autograd._engine_run_backward is function  # type: ignore[attr-defined]


def test_compiled_models_are_refused_by_a_torch_that_is_too_old_and_the_advice_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if TORCH_VERSION >= OLDEST_COMPILED_TORCH:
        monkeypatch.setattr(dynamo, "_compile_options", tuple)
    inner = nn.Linear(4, 4)
    model = torch.compile(inner, backend="eager")
    expected = model(X)
    message = (
        rf"compiled by torch {TORCH_VERSION[0]}\.{TORCH_VERSION[1]}\..*\(2\.13 to .*record the model that was compiled"
    )
    with pytest.raises(UnsupportedModelError, match=message), Recorder(model, keep_op=True):
        pass
    with Recorder(inner, keep_op=True, engine="eager") as rec:
        assert torch.equal(inner(X), expected)
    assert [record.ctx.site for record in rec.recording] == ["/linear"]
    assert torch.equal(model(X), expected)
