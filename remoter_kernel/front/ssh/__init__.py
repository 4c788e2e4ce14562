"""Log in, trust, ask, tunnel: all that knows paramiko, but for the embedded host's server."""
