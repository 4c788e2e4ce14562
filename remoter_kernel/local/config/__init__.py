"""Which remotes there are, and where each of them keeps what."""
