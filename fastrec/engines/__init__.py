"""How events are obtained: one file per engine."""

from fastrec.engines._compiled_roots import is_compiled as is_compiled
from fastrec.engines.compiled import CompiledEngine as CompiledEngine
from fastrec.engines.eager import EagerEngine as EagerEngine
from fastrec.engines.static import StaticEngine as StaticEngine
