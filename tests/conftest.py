import random
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from fastrec._errors import UnsupportedModelError
from fastrec._torch.versions import OLDEST_COMPILED_TORCH, TORCH_VERSION

# Two workers share two cores, and one thread adds up floats in one order.
torch.set_num_threads(1)

settings.register_profile("fastrec", deadline=None, derandomize=True)
settings.load_profile("fastrec")


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Skip a test of compiled models where torch is too old for the compiled engine, and only there."""
    try:
        return (yield)
    except BaseException as error:
        if TORCH_VERSION < OLDEST_COMPILED_TORCH and any(map(_is_refusal, _chain(error))):
            pytest.skip("this torch is too old for the compiled engine")
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised over: ``pytest.warns`` fails over the error that left its block."""
    while error is not None:
        yield error
        error = error.__context__


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, UnsupportedModelError) and "the compiled engine does not find" in str(error)
