"""A sink that measures values and keeps none."""
