"""The compiled engine: kept values become extra outputs of the compiled graphs."""
