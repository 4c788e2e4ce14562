"""One login per remote: a local process holds it for all proxies and commands of a person."""
