"""How events are obtained: one file per engine."""

from fastrec.engines.eager import EagerEngine as EagerEngine
from fastrec.engines.static import StaticEngine as StaticEngine
