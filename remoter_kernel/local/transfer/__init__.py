"""Carries files there and back."""
