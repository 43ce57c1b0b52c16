"""Documents with dense and sparse vectors on an embedded engine: fill, search, explain."""

from typing import Literal

Mode = Literal["hybrid", "dense", "sparse"]
LANGUAGE = "english"  # whose stop words and stems count as words
