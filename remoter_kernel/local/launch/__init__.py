"""Puts there what runs there, and starts it."""
