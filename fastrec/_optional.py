"""The one way to import a package that fastrec can do without."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fastrec._errors import MissingExtraError
from fastrec._version import DISTRIBUTION


def require(package: str, *, extra: str, what: str) -> Any:
    """Import an optional package and return it.

    >>> require("json", extra="pandas", what="to_pandas()").dumps([1, 2])
    '[1, 2]'

    Arguments:
        package: what to import, such as "pandas" or "pyarrow.parquet".
        extra: the extra of fastrec that installs it.
        what: what needs it, as the user called it; the message begins with it.

    Raises MissingExtraError if the package is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        # Where the package is there and one that it needs is not, its own error says which.
        if not f"{package}.".startswith(f"{error.name}."):
            raise
        raise MissingExtraError(
            f"{what} needs {package.partition('.')[0]}, which is not installed; "
            f"install it with pip install '{DISTRIBUTION}[{extra}]'"
        ) from error
