"""Is it better? Scores without and with labels."""
