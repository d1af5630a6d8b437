"""The engines record the same of published models; a few each time, many by ``make test-zoo``."""

from collections.abc import Iterator

import pytest
import torch

from tests.zoo.engines import PARTS, compare
from tests.zoo.language import language_models

TINY = ["Bert (encoder)", "ViT (vision)"]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    validates = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(validates)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", TINY)
def test_tiny_published_models_are_recorded_alike(name: str) -> None:
    pytest.importorskip("transformers")
    row = compare(name, dict(language_models())[name])
    assert (row.static, row.compiled) == ("identical", "identical")
    assert row.records > 100


@pytest.mark.zoo
@pytest.mark.parametrize("part", PARTS)
def test_published_models_are_recorded_alike(part: str) -> None:
    pytest.importorskip({"torchvision": "torchvision", "timm": "timm"}.get(part, "torch"))
    wrong = []
    for name, make in PARTS[part]():
        row = compare(name, make)
        wrong += [] if row.is_right else [row]
    assert not wrong
