"""Our own method, under the same rules as its peers, and its control with shuffled targets."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from text2token import Recipe
from text2token_bench.inside import (
    CARD,
    RESULT,
    WEIGHTS,
    Run,
    RunFolder,
    Training,
    atomic_folder,
    centre_for_head,
    cut_last_layers,
    load_backbone,
    made_from,
    read_card,
    sha256_of,
    write_card,
)
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop, finished
from text2token_bench.rows import Family

STAGE2_SHARE = "stage2_share"
STAGE2_BESIDE = "stage2_beside"
SHUFFLED = "shuffled_targets"


def build(workshop: Workshop, settings: Settings, name: str, kept: Path | None = None) -> Built:
    """Return the embedder that a recipe makes of the passages.

    `settings` are the recipe's, by their dotted names; `stage2_share` is the share of the budget that the second stage has,
    `stage2_beside` one that it has on top. Stages that another variant has trained are taken from the folder `kept`; the
    time they took is not this variant's.
    """
    second, beside = float(settings.get(STAGE2_SHARE, 0)), float(settings.get(STAGE2_BESIDE, 0))
    lengths = {"stage1": 1 - second, **({"stage2": second + beside} if second + beside else {})}
    chosen = {f"{stage}.max_tokens": round(share * workshop.max_tokens) for stage, share in lengths.items()}
    chosen |= {f"{stage}.epochs": 1000 for stage in lengths} | {f"{stage}.tokens_per_batch": 512 for stage in lengths}
    chosen |= {key: value for key, value in settings.items() if key not in (STAGE2_SHARE, STAGE2_BESIDE, SHUFFLED)}
    recipe = Recipe(workshop.backbone, seed=workshop.seed).with_settings(f"{key}={value}" for key, value in chosen.items())
    backbone, steps = load_backbone(recipe.backbone, recipe.vocabulary), made_from(recipe, None)
    run = Run(RunFolder(workshop.folder / "run"), steps, reporter=workshop.reporter)
    centre = centre_for_head(backbone.embedder, workshop.sample())
    training = Training(run, backbone, workshop.passages, recipe.targets, recipe.lora, recipe.seed, centre)
    if kept:
        for stage in recipe.named_stages:
            if (kept / steps[stage]).exists():
                with run.making(stage):
                    shutil.copytree(kept / steps[stage], run.folder.stages / stage)
    if settings.get(SHUFFLED):
        for stage, chosen_for in recipe.named_stages.items():
            training.write_targets(stage, chosen_for)
            shuffle_targets(run.folder.targets / stage, workshop.seed)
    _, results = training.stages(recipe.named_stages, recipe.taught)
    if kept:
        for stage in recipe.named_stages:
            if not (kept / steps[stage]).exists():
                with atomic_folder(kept / steps[stage]) as folder:
                    for file in (WEIGHTS, RESULT):
                        shutil.copy(run.folder.stages / stage / file, folder / file)
    cut_last_layers(backbone.embedder, recipe.cut_layers)
    return finished(workshop, backbone.embedder, name, sum(result.tokens for result in results.values()))


def shuffle_targets(folder: Path, seed: int) -> None:
    """Give every text in a folder of targets another's target: the control that shows what the right one is worth."""
    card = read_card(folder)
    table = pa.concat_tables([pq.read_table(folder / shard.file) for shard in card.shards])
    order = np.random.default_rng(seed).permutation(table.num_rows)
    shuffled = table.take(order).set_column(0, "text", table["text"])
    shards, start = [], 0
    for shard in card.shards:
        pq.write_table(shuffled.slice(start, shard.rows), folder / shard.file)
        shards.append(replace(shard, sha256=sha256_of(folder / shard.file)))
        start += shard.rows
    write_card(replace(card, shards=shards), folder / CARD)


def variant(name: str, *candidates: Settings, family: Family = "text2token", kept: Path | None = None) -> Peer:
    """Return a peer that makes embedders by our recipe with other settings; see `build` for `kept`."""
    return Peer(name, family, partial(build, name=name, kept=kept), candidates, seeded=True)


# small steps, all of them kept; tokens alone, as in the paper
_WHOLE = {"stage1.targets": "data_driven", "stage1.learning_rate": 1e-4, "stage1.contrast": 0.0}
_SECOND = {**_WHOLE, "cut_layers": 0, "stage2.learning_rate": 1e-4, "stage2.contrast": 0.0, STAGE2_SHARE: 0.3}
_BESIDE = {"stage1.targets": "corpus_derived", "cut_layers": 1, "stage1.tokens_per_batch": 1024}
PEERS = (
    variant(
        "text2token, data-driven",
        {**_WHOLE, "cut_layers": 0},
        {**_WHOLE, "cut_layers": 1},
    ),
    variant("text2token, corpus-derived", {**_WHOLE, "stage1.targets": "corpus_derived", "cut_layers": 1}),
    variant(
        "text2token, default",
        {**_BESIDE, "stage1.learning_rate": 2e-4, "stage1.contrast": 0.5},
        {**_BESIDE, "stage1.learning_rate": 2e-4, "stage1.contrast": 0.3},
        {**_BESIDE, "stage1.learning_rate": 2e-4, "stage1.contrast": 0.7},
    ),
    variant(
        "text2token, two stages",
        {**_SECOND, "stage2.targets": "model_derived"},
        {**_SECOND, "stage2.targets": "model_derived", "targets.model_derived.data_driven_share": 0.5},
        {
            **_SECOND,
            "cut_layers": 1,
            "stage1.targets": "corpus_derived",
            "stage2.targets": "model_derived",
            "targets.model_derived.data_driven_share": 0.5,
        },
    ),
    variant(
        "shuffled targets",
        {**_WHOLE, "cut_layers": 1, SHUFFLED: True},
        family="control",
    ),
)
