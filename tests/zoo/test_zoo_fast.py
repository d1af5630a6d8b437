"""A selection of the zoo that runs each time: plain torch, policies, tiny language models."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fastrec.graph import validate_saved_activations
from tests.zoo.language import language_models
from tests.zoo.plain import plain_models, policies

TINY = [
    *("Bert (encoder)", "ModernBert (encoder)", "GPT2 (decoder)", "Llama (decoder)", "T5 (encoder and decoder)"),
    *("ViT (vision)", "Wav2Vec2 (audio)", "Mamba (state space)", "Mixtral (mixture of experts)"),
]


@pytest.fixture(autouse=True)
def _one_seed_and_no_warnings_of_others() -> Iterator[None]:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def check(make: Callable[[], tuple[Any, Any, Any]]) -> None:
    model, args, kwargs = make()
    with torch.no_grad():
        report = validate_saved_activations(model.eval(), args, kwargs)
    assert report and all(entry.parent for entry in report.unchecked), report
    assert report.n_replayed > 0


@pytest.mark.parametrize(("name", "make"), list(plain_models()))
def test_plain_models_are_valid(name: str, make: Any) -> None:
    check(make)


@pytest.mark.parametrize(("name", "make"), list(plain_models()))
def test_plain_models_are_valid_while_they_train(name: str, make: Any) -> None:
    model, args, kwargs = make()
    report = validate_saved_activations(model.train(), args, kwargs, random_seed=1)
    assert report and not report.unchecked, report


def test_policies_are_valid() -> None:
    pytest.importorskip("stable_baselines3")
    for _, make in policies():
        check(make)


@pytest.mark.parametrize("name", TINY)
def test_language_models_are_valid(name: str) -> None:
    pytest.importorskip("transformers")
    check(dict(language_models())[name])
