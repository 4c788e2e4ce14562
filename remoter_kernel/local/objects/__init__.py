"""Objects that are pushed and pulled: what kernels run for that, and where they put them."""
