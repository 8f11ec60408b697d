"""Heads, metrics and files for other libraries: one module per library, imported by no other part of the package."""
