"""The backbone, and what is put on it: adapters, head, whitening, encoding."""
