"""BOTH sides: numbers, acknowledgements and credit, and the frames that carry them."""
