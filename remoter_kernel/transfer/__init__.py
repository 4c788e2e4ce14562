"""Runs on BOTH ends: file transfers, in a stream of frames of their own."""
