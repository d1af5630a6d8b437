"""Where records go."""

from fastrec.sinks.hdf5 import HDF5Sink as HDF5Sink
from fastrec.sinks.ram import RAMSink as RAMSink
