"""SSH by paramiko: what only this way of logging in needs."""
