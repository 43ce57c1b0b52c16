"""The fixtures of the package's own tests, here too."""

from conftest import byte_level_tokenizer, make_backbone, own_cache, real_backbone, text_file, tiny

__all__ = ["byte_level_tokenizer", "make_backbone", "own_cache", "real_backbone", "text_file", "tiny"]
