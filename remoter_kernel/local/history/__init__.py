"""The history of sessions for a person: as lines, as text, as a notebook; and bug reports."""
