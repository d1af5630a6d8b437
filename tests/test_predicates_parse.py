"""Printed predicates read back, and nothing else does."""

import pytest
import torch

from fastrec._errors import PredicateError
from fastrec.predicates import ALWAYS, NEVER, dtype, every, inside, op, parse, shape


@pytest.mark.parametrize(
    ("text", "predicate"),
    [
        ("op('relu', 'conv*') & ~inside('head.*')", op("relu", "conv*") & ~inside("head.*")),
        (" ( op('relu') |\n every(10) ) ", op("relu") | every(10)),
        ("NEVER", NEVER),
        ("ALWAYS.with_(keep_grad=True)", ALWAYS.with_(keep_grad=True)),
        ("shape(..., None, 3)", shape(..., None, 3)),
        ("dtype(torch.bfloat16)", dtype("bfloat16")),
        (
            "op('relu').with_(dtype=torch.float16, device=torch.device('cuda:0'))",
            op("relu").with_(dtype=torch.float16, device=torch.device("cuda:0")),
        ),
    ],
)
def test_reads_what_was_printed(text: str, predicate: object) -> None:
    assert parse(text) == predicate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no printed predicate"),
        ("op('relu'", "is no printed predicate"),
        ("op('relu')\0", "is no printed predicate"),
        ("opp('relu')", "'opp' is no predicate; did you mean 'op'"),
        ("__import__('os').system('true')", "is no part of a printed predicate"),
        ("eval('1')", "'eval' is no predicate"),
        ("op(*['relu'])", "is no value of a printed predicate"),
        ("op(**{'a': 1})", "is no value of a printed predicate"),
        ("op('relu') + op('tanh')", "is no part of a printed predicate"),
        ("op('relu').decide", "is no part of a printed predicate"),
        ("op('relu').narrow(1)", "is no part of a printed predicate"),
        ("op('relu', within=2)", "op does not take these arguments"),
        ("op(3)", "takes strings"),
        ("every(1 + 1)", "'1 \\+ 1' is no value of a printed predicate"),
        ("dtype(torch.load)", "'torch.load' is no value of a printed predicate"),
        ("op('relu').with_(dtyp=1)", "'dtyp' is not a field of CaptureSpec"),
        ("op('relu').with_(device=torch.device('nowhere'))", "is no printed predicate"),
        ("function('train.deep', 'train.py:3')", "stands for a Python function, which a text can't bring back"),
        ("structural(function('train.deep', 'train.py:3'))", "build the predicate again from the function itself"),
        ("op('relu').with_(transform=function('train.pool'))", "stands for a Python function"),
        (f"{'~' * 100_000}ALWAYS", "is no printed predicate"),
        (f"{'ALWAYS & ' * 50_000}ALWAYS", "is no printed predicate"),
    ],
)
def test_refuses_anything_else(text: str, message: str) -> None:
    with pytest.raises(PredicateError, match=message):
        parse(text)
