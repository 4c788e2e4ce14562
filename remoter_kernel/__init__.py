"""A Jupyter kernel that lives here and computes there."""

__version__ = "0.1.0"
