"""The static engine keeps the contract of engines, and notices where it can't keep its own."""

from contracts.engine import EngineContract


class TestStaticEngine(EngineContract):
    engine = "static"
