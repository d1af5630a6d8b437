"""The eager engine: a function mode for ops, and one wrapper of module calls."""
