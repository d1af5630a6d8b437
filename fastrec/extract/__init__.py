"""Values of a model as the output of another module."""
