"""Reading an embedding: its decoded tokens."""
