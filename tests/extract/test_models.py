"""Features of published models with random weights, beside what one writes by hand for them."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec import extract, features, load
from fastrec.exports import to_huggingface
from tests.zoo.vision import define_operators

if find_spec("torchvision") is not None:
    define_operators()  # before timm or transformers imports it


def by_hand(model: nn.Module, batches: list[Any], address: str) -> Tensor:
    """What extraction is without a library: a hook, and a loop."""
    values: list[Tensor] = []
    hook = model.get_submodule(address).register_forward_hook(
        lambda module, args, out: values.append(out.detach().clone())
    )
    with torch.no_grad():
        for batch in batches:
            model(**batch) if isinstance(batch, dict) else model(batch)
    hook.remove()
    return torch.cat(values)


def language_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=100
    )
    model: nn.Module = transformers.BertModel(config).eval()
    return model


def last_hidden_mean(value: Tensor) -> Tensor:
    return value.mean(1)


def test_a_language_model_over_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    model, rng = language_model(), np.random.default_rng(0)
    rows = [
        {"input_ids": rng.integers(0, 100, 7).tolist(), "attention_mask": [1] * 7, "text": f"t{i}"} for i in range(20)
    ]
    data = datasets.Dataset.from_list(rows)
    got = extract(
        model,
        data,
        keep_module="encoder.layer.1",
        to=tmp_path / "bert.h5",
        batch_size=6,
        sample_ids="text",
        progress=False,
    )
    tokens = torch.tensor([row["input_ids"] for row in rows])
    want = by_hand(model, [{"input_ids": part} for part in tokens.split(6)], "encoder.layer.1")
    assert torch.allclose(got.stack("encoder.layer.1", by="sample"), want, atol=1e-5)
    assert got.rows("encoder.layer.1", by="sample").sample_id == [f"t{i}" for i in range(20)]
    pooled = extract(
        model, data, keep_module="encoder.layer.*", transform=last_hidden_mean, dtype="float16", progress=False
    )
    assert {tuple(value.shape) for value in pooled.stack(["encoder.layer.*"], by="sample").values()} == {(20, 32)}
    to_huggingface(load(tmp_path / "bert.h5"), tmp_path / "exported", keys={"encoder.layer.1": "hidden"})
    exported = datasets.load_from_disk(str(tmp_path / "exported")).with_format("numpy")
    assert np.allclose(exported["hidden"][:], want.numpy(), atol=1e-5)


def test_values_of_a_language_model_as_a_module() -> None:
    model, tokens = language_model(), torch.randint(0, 100, (2, 5))
    out = features(
        model, {"middle": "encoder.layer.1", "mlp": "encoder.layer.0.intermediate.intermediate_act_fn/gelu"}
    )(tokens)
    assert torch.allclose(out["middle"], by_hand(model, [tokens], "encoder.layer.1"), atol=1e-5)
    assert out["mlp"].shape == (2, 5, 64) and out["mlp"].requires_grad


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_models_of_timm_over_a_folder_of_images(name: str, tmp_path: Path) -> None:
    timm, image_module = pytest.importorskip("timm"), pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    rng = np.random.default_rng(0)
    for i in range(5):
        image_module.fromarray(rng.integers(0, 255, (250, 240, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    preprocess = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    address = "layer3" if name == "resnet18" else "blocks.5"
    got = extract(model, tmp_path, keep_module=address, preprocess=preprocess, batch_size=2, progress=False)
    images = torch.stack([preprocess(image_module.open(tmp_path / f"{i}.png").convert("RGB")) for i in range(5)])
    assert torch.allclose(got.stack(address, by="sample"), by_hand(model, list(images.split(2)), address), atol=1e-4)
    assert got.rows(address, by="sample").sample_id == [f"{i}.png" for i in range(5)]


def test_a_probe_and_a_data_set_for_similarity_analysis() -> None:
    linear_model, rsatoolbox = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("rsatoolbox")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    x = torch.randn(200, 4)
    y = (x[:, 0] > 0).numpy()
    rows = extract(model, x, keep_module="1", progress=False).rows("1", by="sample")
    probe = linear_model.LogisticRegression().fit(np.asarray(rows)[:150], y[:150])
    assert probe.score(np.asarray(rows)[150:], y[150:]) > 0.9
    data = rsatoolbox.data.Dataset(np.asarray(rows), obs_descriptors={"sample": rows.sample_id})
    assert rsatoolbox.rdm.calc_rdm(data, method="euclidean").n_cond == 200


def test_a_loader_with_workers_gives_the_same_rows() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("workers that are spawned would import this test")
    data = torch.utils.data.TensorDataset(torch.arange(40.0).reshape(10, 4))
    model = nn.Sequential(nn.Linear(4, 3))
    got = extract(model, data, keep_module="0", num_workers=2, batch_size=3, progress=False)
    with torch.no_grad():
        assert torch.allclose(got.stack("0", by="sample"), model(data.tensors[0]), atol=1e-5)
