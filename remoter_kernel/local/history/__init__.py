"""What a session has said, put together for a person: lines, text, a notebook."""
