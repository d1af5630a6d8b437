"""One table of all ops: for any callable that a function mode can see, its canonical name and its ways."""

from fastrec.ops.composites import inner_layer_types as inner_layer_types
from fastrec.ops.facts import OpFacts as OpFacts
from fastrec.ops.facts import op_facts as op_facts
from fastrec.ops.facts import opened as opened
from fastrec.ops.facts import reads_inplace_flag as reads_inplace_flag
