"""Proof that saved values are right: each is computed again, and each edge is tested."""
