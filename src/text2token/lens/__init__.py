"""What an embedding says, in words."""
