"""The compiled engine: a ``torch.compile`` backend that adds kept values to the outputs of compiled graphs."""
