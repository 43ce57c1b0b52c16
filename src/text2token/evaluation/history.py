"""The history of a training run: its losses, and scores of some held-out documents at a few steps.

The paper's figure for any run: alignment in the vocabulary space and quality in the representation space improve together
(a claim of its abstract). Embeddings are read after the last layer, less their mean.
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

DOCUMENTS = 50  # held-out documents of an evaluation step: two to three seconds on two CPU cores


@dataclass(frozen=True)
class StepScores:
    """Scores of the embedder after `step` steps. Rates and MRR@10 in percent; geometry as in `label_free.Geometry`.

    `hit_at_1`, `precision_at_10`: is the top-1 decoded token in the text; the share of the top 10 that is. `gar`: the
    global alignment rate (`evaluation.alignment`). All None where no text holds a word of the vocabulary.
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
class StepEvaluator:
    """Scores the embedder before the first step and at `steps` evenly spaced ones, the last at the end of training."""

    queries: Sequence[str]
    passages: Sequence[str]
    head: LanguageModelHead
    splitter: WordSplitter
    steps: int

    @classmethod
    def of(
        cls,
        queries: Sequence[str],
        passages: Sequence[str],
        head: LanguageModelHead,
        splitter: WordSplitter,
        steps: int,
    ) -> "StepEvaluator | None":
        """Return an evaluator on the first `DOCUMENTS` held-out documents; None without `steps`, or with fewer than two."""
        if not steps or len(queries) < 2:
            return None
        return cls(queries[:DOCUMENTS], passages[:DOCUMENTS], head, splitter, steps)

    def scores(self, embedder: SentenceTransformer, step: int) -> StepScores:
        """Return the scores of `embedder`, which stays in training or evaluation mode."""
        training = embedder.training
        both = embed(embedder.eval(), [*self.queries, *self.passages])
        embedder.train(training)
        both = both - both.mean(0)
        queries, passages = torch.split(both, len(self.queries))
        decoded: tuple[float | None, float | None, float | None] = (None, None, None)
        max_tokens = room_for_text(tokenizer_of(embedder))
        try:
            with torch.inference_mode():
                scores = self.splitter.words.probabilities(self.head(passages))
            found = alignment_of_scores(
                scores, self.splitter.words.lexicon, self.splitter.words_in(self.passages, max_tokens)
            )
            decoded = (found.hit_at_1, found.precision_at_10, found.gar)
        except CorpusError:
            pass
        shape = geometry(queries, passages)
        return StepScores(step, *decoded, dense_scores(queries, passages).mrr_at_10, **asdict(shape))


class TrainingHistory(TrainerCallback):
    """Writes a line of JSON for every logged loss and every evaluation step to `path`.

    A resumed run drops the lines after its checkpoint and writes them again.
    """

    def __init__(self, embedder: SentenceTransformer, evaluator: StepEvaluator | None, path: Path) -> None:
        self.embedder = embedder
        self.evaluator = evaluator
        self.path = path
        self.steps: set[int] = set()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Choose the evaluation steps, and evaluate before the first step."""
        count = self.evaluator.steps if self.evaluator else 0
        self.steps = {round(state.max_steps * (number + 1) / count) for number in range(count)}
        kept = [line for line in read_history(self.path) if line["step"] <= state.global_step] if state.global_step else []
        with atomic_file(self.path) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        if not state.global_step and self.evaluator:
            self._write(asdict(self.evaluator.scores(self.embedder, 0)))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Write the loss."""
        if logs and "loss" in logs:
            self._write({"step": state.global_step, "loss": logs["loss"], "learning_rate": logs.get("learning_rate")})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate, if this is an evaluation step."""
        if self.evaluator and state.global_step in self.steps:
            self._write(asdict(self.evaluator.scores(self.embedder, state.global_step)))

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a history: those with a `loss`, and `StepScores`; a torn last line or no file count as none."""
    lines = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return lines
