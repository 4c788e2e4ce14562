"""BOTH sides: files on their way, in a stream of frames of their own."""
