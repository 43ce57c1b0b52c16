"""A decoder LLM as the steps of a run share it: embedder, head, vocabulary and tokenizer."""

from dataclasses import dataclass
from functools import cached_property

from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from text2token.model.backbone import load_embedder, room_for_text, tokenizer_of
from text2token.model.head import LanguageModelHead, load_head
from text2token.recipe import BackboneSettings, VocabularySettings
from text2token.tokens.vocabulary import TargetVocabulary
from text2token.tokens.words import WordSplitter


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone. `embedder` is what training changes, in place; `vocabulary` decides which tokens may be targets."""

    settings: BackboneSettings
    embedder: SentenceTransformer
    vocabulary: TargetVocabulary

    @cached_property
    def head(self) -> LanguageModelHead:
        """The language-model head, loaded when first used: one that is not tied is read from the model's files."""
        return load_head(self.embedder, self.settings.name)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, the prompt in it."""
        return tokenizer_of(self.embedder)

    @cached_property
    def splitter(self) -> WordSplitter:
        """What finds words in texts."""
        return WordSplitter(self.tokenizer, self.vocabulary.settings)

    @property
    def room(self) -> int:
        """How many tokens of a text are read beside the prompt."""
        return room_for_text(self.tokenizer)


def load_backbone(settings: BackboneSettings, vocabulary: VocabularySettings | None = None) -> Backbone:
    """Load a backbone; raises `ModelError` where it is not there or cannot be used."""
    embedder = load_embedder(settings)
    return Backbone(settings, embedder, TargetVocabulary.from_tokenizer(tokenizer_of(embedder), vocabulary))
