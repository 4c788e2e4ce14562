"""SSH by the system's OpenSSH client: what only this way of logging in needs."""
