"""Who takes part: one file each, with a NAME and the same function ``watching(case)``."""

from __future__ import annotations

from benchmarks.contestants import (
    bare,
    compiled,
    compiled_hooks,
    fastrec_compiled_op,
    fastrec_compiled_sometimes,
    fastrec_eager_module,
    fastrec_eager_op,
    fastrec_lambda,
    fastrec_nothing,
    fastrec_static_op,
    hooks,
)

CONTESTANTS = {
    "bare": bare,
    "bare again": bare,
    "hooks": hooks,
    "op": fastrec_eager_op,
    "module": fastrec_eager_module,
    "lambda": fastrec_lambda,
    "nothing": fastrec_nothing,
    "static": fastrec_static_op,
}
"""By the keys that results are stored under; the bare pass takes part twice, which shows the noise."""

COMPILED = {
    "eager": bare,
    "compiled": compiled,
    "hooks": compiled_hooks,
    "recorded": fastrec_compiled_op,
    "1 in 100": fastrec_compiled_sometimes,
}
"""The same for compiled models."""
