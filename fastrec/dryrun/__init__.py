"""Trying predicates without keeping a tensor."""
