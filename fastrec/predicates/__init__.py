"""Which events to keep: predicates that are joined with ``&``, ``|`` and ``~``.

>>> from fastrec.predicates import every, inside, op
>>> op("relu", "conv*") & ~inside("head.*") & every(10)
op('relu', 'conv*') & ~inside('head.*') & every(10)
"""

from fastrec.predicates._base import ALWAYS as ALWAYS
from fastrec.predicates._base import NEVER as NEVER
from fastrec.predicates._events import after as after
from fastrec.predicates._events import kind as kind
from fastrec.predicates._events import op as op
from fastrec.predicates._modules import inside as inside
from fastrec.predicates._modules import module as module
from fastrec.predicates._modules import module_input as module_input
from fastrec.predicates._modules import module_type as module_type
from fastrec.predicates._parse import parse as parse
from fastrec.predicates._passes import entry as entry
from fastrec.predicates._passes import every as every
from fastrec.predicates._passes import first as first
from fastrec.predicates._passes import grad_enabled as grad_enabled
from fastrec.predicates._passes import phase as phase
from fastrec.predicates._structural import structural as structural
from fastrec.predicates._tensors import dtype as dtype
from fastrec.predicates._tensors import shape as shape
