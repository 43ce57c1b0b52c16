"""Other ways to an embedder from the same text, backbone and token budget: one small file each."""
