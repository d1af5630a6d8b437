"""Where records go."""

from fastrec.sinks.ram import RAMSink as RAMSink
