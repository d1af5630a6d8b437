"""How events are obtained: one file per engine.

Most sessions need neither the static nor the compiled engine, so each is loaded when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastrec._torch.dynamo import is_compiled as is_compiled
from fastrec.engines.eager.engine import EagerEngine as EagerEngine

if TYPE_CHECKING:
    from fastrec.engines.compiled.engine import CompiledEngine as CompiledEngine
    from fastrec.engines.static.engine import StaticEngine as StaticEngine

_LATER = {"CompiledEngine": "fastrec.engines.compiled.engine", "StaticEngine": "fastrec.engines.static.engine"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
