"""How an embedder changes while it is trained: what its embeddings say, and how well they compare, at a few moments.

The paper's figure, on one's own run: alignment in the vocabulary space and quality in the representation space improve
together (a claim of the abstract). Held-out documents are embedded after the last layer,
less their own mean: decoded through the head they should say the documents' words, and compared they should find each other.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from text2token.errors import CorpusError
from text2token.evaluation.alignment import alignment_of_scores
from text2token.evaluation.label_free import dense_scores, geometry
from text2token.files import atomic_file
from text2token.model.backbone import embed, room_for_text, tokenizer_of
from text2token.model.head import LanguageModelHead
from text2token.tokens.words import WordSplitter

DOCUMENTS = 50  # a hundred short texts cost a look two to three seconds on two CPU cores


@dataclass(frozen=True)
class Moment:
    """The embedder after `step` steps. Rates and MRR@10 in percent; geometry as in `label_free.Geometry`.

    `hit_at_1`, `precision_at_10`: is the word said most in the text; how many of the first ten are. `gar`: how many of the
    words of all texts their own embeddings say (`evaluation.alignment`). None where no text holds a word that could be said.
    """

    step: int
    hit_at_1: float | None
    precision_at_10: float | None
    gar: float | None
    mrr_at_10: float
    alignment: float
    uniformity: float
    anisotropy: float


@dataclass(frozen=True)
class Watch:
    """What is looked at, and how often: `looks` times after the beginning, evenly over the steps, the last at the end."""

    queries: Sequence[str]
    passages: Sequence[str]
    head: LanguageModelHead
    splitter: WordSplitter
    looks: int

    @classmethod
    def over(
        cls,
        queries: Sequence[str],
        passages: Sequence[str],
        head: LanguageModelHead,
        splitter: WordSplitter,
        looks: int,
    ) -> "Watch | None":
        """Return a watch over the first `DOCUMENTS` held-out documents; None when there is nothing to see, or no look."""
        if not looks or len(queries) < 2:
            return None
        return cls(queries[:DOCUMENTS], passages[:DOCUMENTS], head, splitter, looks)

    def look(self, embedder: SentenceTransformer, step: int) -> Moment:
        """Embed the texts with the embedder as it is and return what it is like; it stays in the mode it was in."""
        training = embedder.training
        both = embed(embedder.eval(), [*self.queries, *self.passages])
        embedder.train(training)
        both = both - both.mean(0)
        queries, passages = torch.split(both, len(self.queries))
        said: tuple[float | None, float | None, float | None] = (None, None, None)
        room = room_for_text(tokenizer_of(embedder))
        try:
            with torch.inference_mode():
                scores = self.splitter.words.probabilities(self.head(passages))
            found = alignment_of_scores(scores, self.splitter.words.lexicon, self.splitter.words_in(self.passages, room))
            said = (found.hit_at_1, found.precision_at_10, found.gar)
        except CorpusError:
            pass
        shape = geometry(queries, passages)
        return Moment(step, *said, dense_scores(queries, passages).mrr_at_10, **asdict(shape))


class Diary(TrainerCallback):
    """Writes a line of JSON for every logged loss and every look to a file that survives an interruption.

    A resumed run goes on after the checkpoint: what came later is struck out, and written again as it is done again.
    """

    def __init__(self, embedder: SentenceTransformer, watch: Watch | None, path: Path) -> None:
        self.embedder = embedder
        self.watch = watch
        self.path = path
        self.steps: set[int] = set()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Choose the moments, and look before the first step."""
        looks = self.watch.looks if self.watch else 0
        self.steps = {round(state.max_steps * (look + 1) / looks) for look in range(looks)}
        kept = [line for line in read_diary(self.path) if line["step"] <= state.global_step] if state.global_step else []
        with atomic_file(self.path) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        if not state.global_step and self.watch:
            self._write(asdict(self.watch.look(self.embedder, 0)))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Note the loss."""
        if logs and "loss" in logs:
            self._write({"step": state.global_step, "loss": logs["loss"], "learning_rate": logs.get("learning_rate")})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look, when it is a moment for it."""
        if self.watch and state.global_step in self.steps:
            self._write(asdict(self.watch.look(self.embedder, state.global_step)))

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_diary(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a diary: those with a `loss` and those of a `Moment`; a torn last line or no file are none."""
    lines = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return lines
