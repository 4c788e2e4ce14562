"""One login per remote: a small process of this machine holds it for all fronts and commands."""
