"""An embedder over HTTP: OpenAI's embeddings, the lens, the search, and one page that shows both."""
