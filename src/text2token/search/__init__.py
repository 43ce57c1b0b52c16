"""Finding documents, and saying why: a one-off search, and an index on an embedded engine with dense and sparse vectors."""
