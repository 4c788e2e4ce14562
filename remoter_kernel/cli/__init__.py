"""The `remoter` command: one function per verb, no decisions of its own."""
