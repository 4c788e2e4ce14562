"""Runs code on a remote without Jupyter."""
