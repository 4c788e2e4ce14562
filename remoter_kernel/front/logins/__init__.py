"""Logs in to a remote, in whichever way; the embedded host, too."""
