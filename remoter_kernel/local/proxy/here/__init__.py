"""Cells that use this side: `%%local`, `%local`, and objects that are carried."""
