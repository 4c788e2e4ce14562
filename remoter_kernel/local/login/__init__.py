"""Logs in to a remote, by paramiko or by OpenSSH, directly or through the keeper."""
