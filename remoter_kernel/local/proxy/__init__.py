"""The kernel that Jupyter sees: its sockets, who answers on them, and what a person sees."""
