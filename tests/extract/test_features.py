"""Features of a model: the values of the pass itself, trainable, and nothing run behind the last of them."""

import copy
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import FastrecError, dry_run
from fastrec._errors import OptionError, RecordKeyError


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.calls = nn.Linear(4, 4), nn.BatchNorm1d(4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (x + self.norm(self.inner(x)).relu()).relu_()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual() for _ in range(4))
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if twice and x.sum() > -1e9:
                x = layer(x)
        out: Tensor = self.lstm(x[:, None])[0]
        return out


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


X = torch.randn(6, 4)


def test_values_are_those_of_the_pass_and_later_layers_do_not_run() -> None:
    model, plain = net(), net()
    extractor = fastrec.features(model, {"low": "layers.0", "op": "layers.1/relu", "high": "layers.1"})
    out = extractor(X)
    low = plain.layers[0](X)
    inner = plain.layers[1].norm(plain.layers[1].inner(low)).relu()
    assert list(out) == ["low", "op", "high"]
    assert (
        torch.equal(out["low"], low)
        and torch.equal(out["op"], inner)
        and torch.equal(out["high"], (low + inner).relu())
    )
    assert [layer.calls for layer in model.layers] == [1, 1, 0, 0]
    assert model.layers[2].norm.num_batches_tracked == 0
    assert nn.Module.__call__.__qualname__ == "Module._wrapped_call_impl"


@pytest.mark.parametrize("sites", [{"a": "layers.2"}, {"a": "layers.1", "b": "layers.2/relu_2"}, {"a": ":out"}])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_call_gives_what_a_recorder_gives(sites: dict[str, str], mode: str) -> None:
    model = net().train(mode == "train")
    extractor = fastrec.features(model, sites)
    for n in range(3):
        x, twin = torch.randn(6, 4), copy.deepcopy(model)
        recording = fastrec.record(twin, x, keep_op=True, keep_module=True)
        for name, value in extractor(x).items():
            assert torch.equal(value, recording[sites[name]][0].activation), n


def test_it_trains_the_model() -> None:
    model, plain = net(), net()
    extractor = fastrec.features(model, {"low": "layers.0", "high": "layers.1"})
    out = extractor(X)
    (out["low"].square().mean() + out["high"].square().mean()).backward()
    low = plain.layers[0](X)
    (low.square().mean() + plain.layers[1](low).square().mean()).backward()
    for name, parameter in plain.layers[:2].named_parameters():
        grad = model.layers.get_parameter(name).grad
        assert parameter.grad is not None and grad is not None and torch.equal(grad, parameter.grad)
    assert dict(extractor.named_parameters()).keys() == {f"model.{name}" for name, _ in model.named_parameters()}


def test_a_value_that_is_written_later_is_the_value_at_its_moment() -> None:
    out = fastrec.features(net(), {"sum": "layers.0/add", "end": "layers.1"})(X)
    assert (out["sum"] < 0).any()


def test_nested_outputs_shared_modules_and_repeated_calls() -> None:
    model = net()
    assert fastrec.features(model, {"h": "lstm[1][0]"})(X)["h"].shape == (1, 6, 3)
    with pytest.raises(RecordKeyError, match=r"'lstm' has several leaves; give one of them, such as 'lstm\[0\]'"):
        fastrec.features(model, {"h": "lstm"})(X)
    extractor = fastrec.features(model.eval(), {"first": "layers.1"})
    assert torch.equal(extractor(X, twice=True)["first"], model.layers[1](model.layers[0](model.layers[0](X))))


def test_no_grad_autocast_and_inference_mode() -> None:
    extractor = fastrec.features(net().eval(), {"a": "layers.1"})
    with torch.no_grad():
        assert not extractor(X)["a"].requires_grad
    with torch.inference_mode():
        assert extractor(X)["a"].is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastrec.features(net().eval(), {"a": "layers.1.inner"})(X)["a"].dtype == torch.bfloat16


def test_copies_and_files_of_it_work() -> None:
    extractor = fastrec.features(net().eval(), {"a": "layers.1"})
    want = extractor(X)["a"]
    buffer = io.BytesIO()
    torch.save(extractor, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(extractor), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(X)["a"], want)
    extractor.model = net(1).eval()
    assert not torch.equal(extractor(X)["a"], want)
    assert torch.equal(torch.compile(copy.deepcopy(extractor), backend="eager")(X)["a"], extractor(X)["a"])


def test_threads_have_passes_of_their_own() -> None:
    extractor = fastrec.features(net().eval(), {"a": "layers.1"})
    inputs = [torch.randn(6, 4) for _ in range(4)]
    want, wrong = [extractor(x)["a"] for x in inputs], []

    def run(n: int) -> None:
        for _ in range(30):
            if not torch.equal(extractor(inputs[n])["a"], want[n]):
                wrong.append(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_error_of_the_model_is_its_own_and_the_next_call_works() -> None:
    extractor = fastrec.features(net().eval(), {"a": "layers.1"})
    with pytest.raises(RuntimeError, match="shape"):
        extractor(torch.ones(2, 3))
    assert extractor(X)["a"].shape == (6, 4)
    with fastrec.Recorder(extractor, keep_op="linear") as rec:
        extractor(X)
    assert list(rec.recording.sites) == ["model.layers.0.inner/linear", "model.layers.1.inner/linear"]


@pytest.mark.parametrize("sites", [None, {}, ["layers.1"], {"a": 1}])
def test_anything_but_names_is_refused(sites: Any) -> None:
    with pytest.raises(OptionError, match="give a dict name -> site"):
        fastrec.features(net(), sites)


def test_a_site_that_is_not_reached_is_told_with_what_is_near() -> None:
    with pytest.raises(RecordKeyError, match=r"nothing appeared at 'layers.7' in this pass; did you mean 'layers"):
        fastrec.features(net(), {"a": "layers.7"})(X)
    near = [ctx.site for ctx in dry_run(net(), X).contexts]
    assert "layers.1/relu" in near
    with pytest.raises(FastrecError, match=r"did you mean '.*relu"):
        fastrec.features(net(), {"a": "layers.1/rleu"})(X)
    with pytest.raises(RecordKeyError, match=r"did you mean 'layers.\d.inner/linear"):
        fastrec.features(net(), {"a": "layers.1/linear"})(X)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_it_trains_under_ddp(tmp_path: Path) -> None:
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, plain = net(), net()
        parallel = nn.parallel.DistributedDataParallel(
            fastrec.features(model, {"a": "layers.0"}), find_unused_parameters=True
        )
        parallel(X)["a"].square().mean().backward()
        plain.layers[0](X).square().mean().backward()
        for name, parameter in plain.layers[0].named_parameters():
            grad = model.layers[0].get_parameter(name).grad
            assert parameter.grad is not None and grad is not None and torch.allclose(grad, parameter.grad)
    finally:
        distributed.destroy_process_group()
