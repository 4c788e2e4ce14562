"""Measure remoter beside a local kernel and its closest peer, over a link of our choosing."""
