"""Every setting of a run, on one page: what it means, its range and its default.

A recipe is written as TOML, in Python, or by `--set section.key=value`; all three are checked here, and an unknown key is
refused with the nearest one.
"""

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tomli_w
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from text2token.errors import UsageError
from text2token.settings import (
    ONE_OR_MORE,
    Place,
    Prompt,
    Seed,
    Share,
    ShareBelowOne,
    checked,
    from_toml,
    item_name,
    to_toml,
    with_assignments,
)

DEFAULT_PROMPT = 'This sentence: "{text}" means in one word: "'
UNTRAINED, PREVIOUS = "untrained", "previous"  # teachers
RECIPES = importlib.resources.files("text2token") / "recipes"

Format = Literal["auto", "txt", "jsonl", "json", "csv", "tsv", "parquet"]
OnError = Literal["stop", "skip"]
DType = Literal["auto", "float32", "bfloat16"]
Pooling = Literal["last", "mean", "weighted_mean"]
Attention = Literal["causal", "bidirectional"]
Postprocessing = Literal["none", "centred", "whitened"]


def check_stop_words(languages: str) -> str:
    """Return `languages` as given; `ValueError` where one of them has no stop words."""
    from stop_words import LANGUAGE_MAPPING

    for language in languages.split("+"):
        if languages != "off" and language not in {*LANGUAGE_MAPPING, "zh"}:
            known = ", ".join(sorted([*LANGUAGE_MAPPING, "zh"]))
            raise ValueError(f"no stop words for language {language!r}; there are {known}, or off")
    return languages


@checked
class BackboneSettings:
    """Which model embeds a text, and how."""

    name: Place
    """A hub id, a folder, a `.gguf` file, or `pypi:PACKAGE` for a GGUF inside an installed Python package."""
    prompt: Prompt = DEFAULT_PROMPT
    """What stands around the text, with `{text}` in it; `{text}` alone for none."""
    pooling: Pooling = "last"
    """Which tokens' hidden states are the embedding."""
    attention: Attention = "causal"
    """Whether a token sees those behind it."""
    max_length: Annotated[int, Field(ge=8)] = 256
    """Tokens of a text that are read, the prompt included."""
    layers: PositiveInt | None = None
    """Keep only so many of the first layers (none: all)."""
    dtype: DType = "auto"
    """Of training and embedding here; `auto` is bfloat16 where the processor computes in it, else float32."""


@checked
class ReadingSettings:
    """How text is read."""

    text_field: str | None = None
    """The JSON key or column that holds the text (none: found); dots lead into objects."""
    format: Format = "auto"
    """What the files are; `auto` goes by their names."""
    on_error: OnError = "stop"
    """What a broken line does: stop, or skip (counted and shown)."""


@checked
class CorpusSettings:
    """How documents become passages."""

    passage_characters: Annotated[int, Field(ge=50)] = 220
    """Length of a passage, about: whole sentences are joined up to it."""
    held_out: NonNegativeInt = 200
    """Documents that training never sees, for the evaluation; at most a third of those that qualify."""
    halves_from: NonNegativeInt = 60
    """A document of one passage of so many characters becomes its two halves, so that it has neighbouring passages
    (0: never)."""
    seed: Seed = 0
    """Decides which documents are held out."""


@checked
class VocabularySettings:
    """Which tokens may be targets."""

    stop_words: Annotated[str, AfterValidator(check_stop_words)] = "en"
    """Languages whose stop words are left out: ISO 639-1 codes joined by `+`, such as `en+de`; or `off`."""


@checked
class DataDrivenSettings:
    """Targets from the text itself: its meaningful tokens."""

    weight: Literal["idf", "uniform"] = "idf"
    """What a token weighs: its rarity in the corpus, or the same for all."""
    top_k: PositiveInt = 64
    """Tokens of a target, those of the largest weight."""
    read: Literal["tokens", "words"] = "tokens"
    """`tokens`: the text's tokens, spellings merged. `words` (the authors' form): the text without punctuation and stop
    words is tokenised anew, and all tokens are taken."""


@checked
class LikelihoodRatioSettings:
    """Targets from a model, as in the paper: tokens far more likely for this text than for texts in general."""

    teacher: Literal["previous", "untrained"] = "previous"
    """The model that names them: what the stage before made, or the untrained backbone."""
    tau: PositiveFloat | Literal["auto"] = 1e-5
    """One divided by the likelihood ratio from which on a token is in the target; `auto`: some ten tokens in the median."""
    floor: PositiveFloat = 1e-8
    """Added to the prior probability of every token."""
    prior_texts: PositiveInt = 256
    """Texts from which the prior is learnt."""


@checked
class ModelDerivedSettings:
    """Targets from a model: the words whose log probabilities rise most above their mean over the corpus."""

    prompts: Annotated[tuple[Prompt, ...], ONE_OR_MORE] = (DEFAULT_PROMPT,)
    """Prompts of the untrained backbone, read at the last token; the logits are averaged."""
    alpha: NonNegativeFloat = 0.7
    """Share of the prior that is subtracted from the logits."""
    top_k: PositiveInt = 32
    """Tokens of a target, those of the largest logits."""
    temperature: PositiveFloat = 1.0
    """Of the softmax that weighs them."""
    data_driven_share: Share = 0.0
    """Share of the target that is the text's data-driven one."""
    prior_texts: PositiveInt = 1000
    """Texts from which the prior is learnt."""
    teacher: Literal["previous", "untrained"] = "untrained"
    """The model that names them: the untrained backbone, or what the stage before made."""

    def __post_init__(self) -> None:
        if not self.prompts and self.teacher == UNTRAINED:
            raise UsageError("prompts is empty; the backbone needs at least one")


@checked
class CorpusDerivedSettings:
    """Targets from the corpus: the data-driven tokens of a text and of texts near it."""

    next_passage: bool = True
    """Take the tokens of the passage that follows in the document."""
    neighbours: NonNegativeInt = 4
    """Take those of so many nearest texts of the corpus."""
    top_k: PositiveInt = 64
    """Tokens of a target, those of the largest weight."""
    data_driven_share: Share = 0.5
    """Share of the target that is the text's data-driven one."""

    def __post_init__(self) -> None:
        if not self.neighbours and not self.next_passage:
            raise UsageError("neither next_passage nor neighbours: there is nothing to derive targets from")


@checked
class TargetSettings:
    """The settings of every target constructor; a stage names the one it uses."""

    # A field registers a constructor: its name is that of the module in text2token.targets that builds it.
    data_driven: DataDrivenSettings = field(default_factory=DataDrivenSettings)
    likelihood_ratio: LikelihoodRatioSettings = field(default_factory=LikelihoodRatioSettings)
    model_derived: ModelDerivedSettings = field(default_factory=ModelDerivedSettings)
    corpus_derived: CorpusDerivedSettings = field(default_factory=CorpusDerivedSettings)


if TYPE_CHECKING:
    ConstructorName: TypeAlias = str
else:
    ConstructorName = Literal[tuple(entry.name for entry in dataclasses.fields(TargetSettings))]


@checked
class LoraSettings:
    """Low-rank adapters on the linear layers of the backbone."""

    rank: NonNegativeInt = 16
    """Rank of an adapter; 0 trains all weights instead."""
    alpha: PositiveInt = 32
    """Scale of an adapter, divided by its rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout before an adapter."""
    last_layers: PositiveInt | None = None
    """Adapt only so many of the last layers (none: all); the others need no gradient."""
    modules: Literal["all", "attention"] = "all"
    """Which linear layers: all, or queries, keys, values and output of the attention."""


@checked
class StageSettings:
    """How one stage trains."""

    targets: ConstructorName = "corpus_derived"
    """What is predicted."""
    learning_rate: PositiveFloat = 2e-4
    """Highest learning rate: it rises over `warmup` and falls linearly to zero."""
    max_tokens: PositiveInt | None = 120_000
    """Length in tokens, the prompt included (none: no limit); the step that reaches it is the last."""
    epochs: PositiveInt = 1
    """Times that the corpus is seen at most."""
    tokens_per_batch: PositiveInt = 1024
    """Tokens of a batch at most."""
    texts_per_batch: PositiveInt | None = None
    """Texts of a batch at most (none: no limit)."""
    accumulate: PositiveInt = 1
    """Batches of an optimiser step."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    contrast: Share = 0.5
    """Share of an InfoNCE loss between neighbouring passages beside the token loss (1: instead of it)."""
    centre: Literal["untrained", "none"] = "untrained"
    """Mean embedding subtracted before the head: that of the untrained backbone, or none."""
    steps_per_checkpoint: PositiveInt = 50
    """Optimiser steps between two checkpoints."""

    @property
    def schedule(self) -> "ScheduleSettings":
        """The settings that decide which texts the stage sees."""
        return ScheduleSettings(**{entry.name: getattr(self, entry.name) for entry in fields(ScheduleSettings)})


@dataclass(frozen=True)
class ScheduleSettings:
    """What of a stage's settings decides which texts it sees: `plan` is given these and no others."""

    max_tokens: int | None
    epochs: int
    tokens_per_batch: int
    texts_per_batch: int | None
    accumulate: int
    contrast: float


@checked
class Recipe:
    """Every setting of a run."""

    backbone: BackboneSettings
    sources: Annotated[tuple[Place, ...], ONE_OR_MORE] = ()
    """What is read: files, globs, URLs, dataset folders, or `python:stdlib`."""
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    stages: tuple[StageSettings, ...] = (StageSettings(),)
    """Stages follow each other, each with a new adapter on what those before made; `[[stages]]` in TOML, and
    `stage1.key`, `stage2.key` in `--set`, where `stage2=none` leaves one out."""
    cut_layers: NonNegativeInt = 1
    """Last layers that are trained with and left out of the embedder."""
    postprocessing: Postprocessing = "whitened"
    """What is done to the embeddings, learnt on the corpus and written into the model."""
    evaluation_steps: NonNegativeInt = 4
    """Evaluation steps in a stage, evenly spaced: some held-out documents are scored for the report."""
    evaluation_share: NonNegativeFloat | None = 0.1
    """Bounds the cost of the evaluation as a share of the training's (none: all held-out documents)."""
    minutes: PositiveFloat | None = None
    """Shorten the first stage and the evaluation to about so many minutes on this machine (none: not); a length in tokens
    that the command line gives goes before."""
    seed: Seed = 0
    """Of everything random but the choice of held-out documents."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise UsageError("stages: there is none, so nothing is trained")
        if self.lora.rank and self.lora.last_layers is not None and self.lora.last_layers <= self.cut_layers:
            raise UsageError(
                f"lora.last_layers is {self.lora.last_layers} and cut_layers {self.cut_layers}: "
                "all that is trained would be left out of the embedder"
            )

    @property
    def named_stages(self) -> dict[str, StageSettings]:
        """The stages in their order, by name: stage1, stage2."""
        return {item_name("stages", number): stage for number, stage in enumerate(self.stages, start=1)}

    @property
    def taught(self) -> list[str]:
        """The names of the stages whose teacher is the model that the stage before made."""
        later = list(self.named_stages.items())[1:]
        return [name for name, stage in later if getattr(getattr(self.targets, stage.targets), "teacher", None) == PREVIOUS]

    def with_settings(self, assignments: Iterable[str]) -> "Recipe":
        """Return a copy changed by `section.key=value` assignments, such as `stage1.learning_rate=1e-4`.

        Raises `UsageError` for an unknown key (naming the nearest) or a value that does not fit.
        """
        return with_assignments(self, assignments)

    def to_toml(self) -> str:
        """Return the recipe as TOML, which `read_recipe` reads as the same recipe."""
        return to_toml(self)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in RECIPES.iterdir() if file.name.endswith(".toml"))


def read_recipe(name: str) -> Recipe:
    """Return the recipe in a TOML file, or one that comes with the package by its name (`recipe_names`).

    What the file leaves out has its default. Raises `UsageError` with the file and the key where something is wrong.
    """
    if name in recipe_names():
        return from_toml(Recipe, (RECIPES / f"{name}.toml").read_text(encoding="utf-8"), name)
    try:
        return from_toml(Recipe, _stages_listed(Path(name).read_text(encoding="utf-8-sig")), name)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: no such recipe file; those that come along are {', '.join(recipe_names())}") from error


def _stages_listed(text: str) -> str:
    """Return a recipe that has the sections [stage1] and [stage2], as recipes were first written, as it is written now."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return text
    earlier = [content.pop(name, None) for name in ("stage1", "stage2")]
    if "stages" in content or not all(isinstance(stage, dict | None) for stage in earlier) or earlier == [None, None]:
        return text
    stages = [earlier[0] or {}, *([earlier[1]] if earlier[1] else [])]
    for stage in stages:
        if stage.get("recentre") is False:
            del stage["recentre"]
    return tomli_w.dumps({**content, "stages": [stage for stage in stages if stage.get("targets") != "none"]})
