"""The eager engine: a wrapper of module calls, a function mode for ops, and a trie that names what they see."""
