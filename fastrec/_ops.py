"""One table of all ops: for any callable that a function mode can see, its canonical name and its ways."""

from fastrec._op_facts import OpFacts as OpFacts
from fastrec._op_facts import op_facts as op_facts
from fastrec._op_facts import reads_inplace_flag as reads_inplace_flag
from fastrec._op_inside import inner_layer_types as inner_layer_types
from fastrec._op_opening import opened as opened
