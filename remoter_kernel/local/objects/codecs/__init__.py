"""What runs inside a kernel, on either side, to carry objects: its text is sent there."""
