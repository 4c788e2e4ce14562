"""One conversation with a session: gets there, keeps it alive, and knows whose it is."""
