"""Where records go."""

from fastrec.sinks.hdf5.sink import HDF5Sink as HDF5Sink
from fastrec.sinks.ram.sink import RAMSink as RAMSink
from fastrec.sinks.statistics.sink import StatisticsSink as StatisticsSink
