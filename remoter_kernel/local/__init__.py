"""HERE: what runs on the machine in front of the person."""
