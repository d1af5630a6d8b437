from contracts.sink import Rig, SinkContract

from fastrec._contracts import Sink, Source
from fastrec.sinks import RAMSink


class TestRAMSinkContract(SinkContract):
    def make(self) -> Sink:
        return RAMSink()

    def read(self, rig: Rig) -> Source:
        assert isinstance(rig.sink, RAMSink)
        return rig.sink.source()
