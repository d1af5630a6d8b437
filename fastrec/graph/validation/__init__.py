"""Checks of saved values: each is computed again, and each edge of the graph is tested."""
