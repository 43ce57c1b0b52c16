"""What an embedder is written as: a folder, a card, ONNX, sparse, static; and the vectors of a corpus."""
