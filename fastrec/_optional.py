"""Optional packages that exports of a history need."""

from __future__ import annotations

import importlib
from typing import Any

from fastrec._errors import MissingExtraError


def pandas() -> Any:
    """The pandas module, or MissingExtraError."""
    return _imported("pandas", "pandas")


def networkx() -> Any:
    """The networkx module, or MissingExtraError."""
    return _imported("networkx", "networkx")


def pyarrow() -> Any:
    """The pyarrow module with its parquet part, or MissingExtraError."""
    _imported("pyarrow.parquet", "parquet")
    return _imported("pyarrow", "parquet")


def _imported(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"{package.partition('.')[0]} is needed here and not installed; pip install 'fastrec[{extra}]'"
        ) from error


def require(package: str, *, extra: str, what: str) -> Any:
    """Import an optional package and return it, or raise MissingExtraError."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{what} needs {package.partition('.')[0]}, which is not installed; "
            f"install it with pip install 'fastrec[{extra}]'"
        ) from error
