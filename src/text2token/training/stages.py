"""The stages of a run, one after the other: targets are made, then the embedder is trained on them, each once."""

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from text2token.errors import OutputError
from text2token.evaluation.history import StepEvaluator, TrainingHistory
from text2token.files import atomic_file, claim
from text2token.model.adapters import add_lora
from text2token.model.bundle import Backbone
from text2token.recipe import LoraSettings, StageSettings, TargetSettings
from text2token.steps import read_card, write_card
from text2token.targets.constructors import make_constructor, write_constructed
from text2token.targets.store import TargetCard, documents_of, open_targets
from text2token.targets.store import read_card as card_of_targets
from text2token.training.checkpoints import load_trainable, trainable_weights
from text2token.training.folder import HISTORY, WEIGHTS, Run
from text2token.training.objective import TokenTargetLoss
from text2token.training.schedule import plan
from text2token.training.stage import StageResult, text_lengths, train_stage

RESULT = "result.json"


@dataclass(frozen=True)
class Training:
    """What every stage trains: the backbone's embedder, in place, on `passages`, with the same adapters and seed.

    `centre`, shape (dimension,), is the mean embedding of the untrained backbone, which the head reads less.
    """

    run: Run
    backbone: Backbone
    passages: Dataset
    targets: TargetSettings
    lora: LoraSettings
    seed: int
    centre: Tensor

    def stages(
        self, stages: dict[str, StageSettings], taught: list[str], evaluator: StepEvaluator | None = None
    ) -> tuple[dict[str, TargetCard], dict[str, StageResult]]:
        """Train all `stages`; return their cards and results. Losses and the scores of `evaluator` are in their histories.

        Targets that need no stage before them (those not in `taught`) are made first: some need the untrained backbone.
        """
        cards: dict[str, TargetCard] = {}
        results: dict[str, StageResult] = {}
        with self.run.first_alone():
            cards |= {name: self.write_targets(name, stage) for name, stage in stages.items() if name not in taught}
        self.run.phases.ended("targets")
        if not self.lora.rank:
            self.backbone.embedder.float()  # all weights: bfloat16 would round small updates away
        for name, stage in stages.items():
            if name in taught:
                with self.run.first_alone():
                    cards[name] = self.write_targets(name, stage)
                self.run.phases.ended("targets")
            if self.lora.rank:
                add_lora(self.backbone.embedder, self.lora, self.seed)
            results[name] = self.fit(name, stage, evaluator, "Training" if len(stages) == 1 else f"Training, {name}")
            self.run.phases.ended("training")
        return {name: cards[name] for name in stages}, results

    def write_targets(self, name: str, stage: StageSettings) -> TargetCard:
        """Write the targets of a stage, unless they are there, and return their card.

        Where a target costs a forward pass, only passages that the stage will see get one.
        """
        run, step = self.run, f"targets/{name}"
        folder, rows_of = run.folder.targets / name, run.folder.rows_of(name)
        title = f"Targets, {stage.targets.replace('_', '-')}"
        if not run.is_made(step):
            with run.making(step):
                constructor = make_constructor(stage.targets, self.backbone, self.targets)
                rows_of.unlink(missing_ok=True)
                rows = self._rows_to_see(stage) if constructor.expensive else None
                if rows is not None:
                    with atomic_file(rows_of) as path:
                        save_file({"rows": torch.from_numpy(rows)}, path)
                with run.reporter.progress(title, len(self.passages if rows is None else rows), "texts") as progress:
                    write_constructed(
                        constructor, self.passages, self.backbone, folder, rows=rows, progress=progress, engine=run.engine
                    )
        card = card_of_targets(folder)
        halves = f", half of the weight on {card.sizes.half_of_mass[1]:.0f} tokens (median)" if card.sizes else ""
        run.reporter.note(f"{title}: {card.texts:,} texts{halves}.")
        return card

    def _rows_to_see(self, stage: StageSettings) -> NDArray[np.int64]:
        lengths, documents = text_lengths(self.backbone.embedder, self.passages), np.array(self.passages["document"])
        return plan(lengths, stage.schedule, self.seed, documents=documents, processes=self.run.processes.count).rows_to_see

    def fit(self, name: str, stage: StageSettings, evaluator: StepEvaluator | None, title: str) -> StageResult:
        """Train one stage, or resume it at its last checkpoint, or reuse its weights where it is finished."""
        run, embedder, made = self.run, self.backbone.embedder, self.run.folder.stages / name
        if run.is_made(name):
            load_trainable(embedder, load_file(made / WEIGHTS))
            return read_card(StageResult, made / RESULT, OutputError, "result of a stage", "Start anew with --overwrite")
        with run.first_alone():
            if run.processes.first:
                claim(made)
                claim(run.folder.cache)
            targets = open_targets(run.folder.targets / name, self.backbone.vocabulary, cache=run.folder.cache)
        rows_of = run.folder.rows_of(name)
        read = self.passages.select(load_file(rows_of)["rows"].numpy()) if rows_of.exists() else self.passages
        documents = documents_of(targets, read)
        centre = self.centre if stage.centre == "untrained" else None
        loss = TokenTargetLoss(embedder, self.backbone.head, centre, contrast=stage.contrast)
        lengths = text_lengths(embedder, targets)
        schedule = plan(lengths, stage.schedule, self.seed, documents=documents, processes=run.processes.count)
        with run.making(name), run.reporter.progress(title, schedule.tokens_to_see, "tokens") as progress:
            result = train_stage(
                embedder,
                loss,
                targets.add_column("document", documents),
                schedule,
                stage,
                made / f"checkpoints-{run.made_from[name]}",  # those of other settings are no good here
                resume=True,
                progress=progress,
                callbacks=[TrainingHistory(embedder, evaluator, made / HISTORY)] if run.processes.first else [],
            )
            if run.processes.first:
                write_card(result, made / RESULT)
                with atomic_file(made / WEIGHTS) as path:
                    save_file(trainable_weights(embedder), path)
        return result
