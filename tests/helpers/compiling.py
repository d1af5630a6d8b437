"""What the tests of compiled models share."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from fastrec.predicates import kind, structural

EVERYTHING = {
    "keep_op": kind("op") & ~structural(lambda ctx: ctx.site.count("/") > 1),  # what composites are made of left out
    "keep_module": kind("module_enter", "module_exit"),
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Nothing that another test compiled is there, in each test of a module that imports this."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
