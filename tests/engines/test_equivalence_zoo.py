"""The engines give the same records of real models."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fastrec import Recorder
from fastrec.predicates import module_type, op
from tests.helpers.naive import seeded
from tests.helpers.same_recordings import assert_same_recordings
from tests.zoo.language import language_models
from tests.zoo.plain import plain_models

FEW = ["GPT2 (decoder)", "Bert (encoder)"]
OPTIONS: list[dict[str, Any]] = [
    {"keep_op": op("layernorm", "linear", "gelu", "relu", "softmax", "conv2d", "lstm")},
    {"keep_module": module_type(nn.Linear, nn.LayerNorm)},
    {"keep_op": "add*"},
]


@pytest.fixture(autouse=True)
def _no_warnings_of_others() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check(make: Callable[[], tuple[Any, Any, Any]]) -> None:
    for options in OPTIONS:
        found = []
        for engine in ("eager", "static"):
            with seeded():  # anew, because some keep a state from pass to pass
                model, args, kwargs = make()
            args = args if isinstance(args, list | tuple) else (args,)
            with torch.no_grad(), Recorder(model.eval(), engine=engine, **options) as rec:
                for index in range(4):
                    with seeded(index):
                        model(*args, **(kwargs or {}))
            found.append(rec.recording)
        assert_same_recordings(*found)


@pytest.mark.parametrize("name", FEW)
def test_language_models(name: str) -> None:
    pytest.importorskip("transformers")
    check(dict(language_models())[name])


@pytest.mark.long
def test_all_language_models() -> None:
    pytest.importorskip("transformers")
    for name, make in language_models():
        if name not in FEW:
            print(name)
            check(make)


@pytest.mark.long
def test_plain_models() -> None:
    for name, make in plain_models():
        print(name)
        check(make)
