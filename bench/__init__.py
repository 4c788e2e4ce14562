"""Measure remoter beside a local kernel and beside its closest peer, over a link of our choosing."""
