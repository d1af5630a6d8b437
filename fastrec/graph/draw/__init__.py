"""Drawings of a graph: one description, and pictures, texts and pages that are made from it and nothing else."""
