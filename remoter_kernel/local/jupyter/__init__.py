"""Jupyter's side of the kernel: its sockets, and what is said on them without the far kernel."""
