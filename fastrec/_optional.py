"""The distribution: what fastrec is installed as, its version, and the one way to import a package of its extras.

    pandas = require("pandas", extra="pandas", what="to_pandas()")

The distribution has another name than the package that is imported, because `fastrec` on the package index belongs to
another project. Its name stands in the message about a package that is missing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fastrec._errors import MissingExtraError

DISTRIBUTION = "fastrec-torch"

__version__ = "0.1.0"


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
