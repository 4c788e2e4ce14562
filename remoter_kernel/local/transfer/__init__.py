"""Copies files there and back."""
