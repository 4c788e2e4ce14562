"""What a cell can ask with `%remoter`."""
