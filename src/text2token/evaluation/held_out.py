"""Which documents a model was not trained on: digests of its held-out pairs lie beside it, and none of their text.

    my-embedder/held_out.json   {"seed": 0, "held_out": 200, "pairs": ["9f86d081884c7d65", …]}

Scores on documents that a model was trained on flatter it. So queries come only from documents that no model in the table
was trained on, as far as that is known; where it is not, a note says so.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from transformers.utils.hub import cached_file

from text2token.corpus.documents import Document
from text2token.corpus.prepare import Corpus, pair_digest, temporary_corpus
from text2token.files import atomic_file
from text2token.model.backbone import PYPI, package_file
from text2token.progress import Reporter
from text2token.recipe import CorpusSettings

FILE = "held_out.json"


def write_held_out(pairs: Dataset, seed: int, folder: Path) -> None:
    """Write beside the model in `folder` which `pairs` (columns query and passage) it was not trained on."""
    content = {"seed": seed, "held_out": len(pairs), "pairs": sorted(_digests(pairs))}
    with atomic_file(folder / FILE) as path:
        path.write_text(json.dumps(content, indent=0), encoding="utf-8")


def held_out_of(model: str) -> frozenset[str] | None:
    """Return the digests of the pairs that `model` (folder, hub id, `pypi:PACKAGE`) was not trained on; None: not known.

    Models of earlier versions have none beside them; the folder of their run, MODEL.run, tells.
    """
    run = Path(model.rstrip("/") + ".run") / "corpus"
    try:
        place = package_file(model.removeprefix(PYPI), "modules.json").parent if model.startswith(PYPI) else model
        if found := cached_file(
            place,
            FILE,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        ):
            return frozenset(map(str, json.loads(Path(found).read_text(encoding="utf-8"))["pairs"]))
        return _digests(Corpus.open(run).held_out) if (run / "held_out.arrow").exists() else None
    except (OSError, ValueError, TypeError, KeyError):  # damaged, or no such model, which whoever opens it tells
        return None


@contextmanager
def unseen_corpus(
    documents: Iterable[Document],
    models: Sequence[str],
    settings: CorpusSettings | None = None,
    *,
    reporter: Reporter,
) -> Iterator[Corpus]:
    """Yield the corpus of `documents`, held out what none of `models` was trained on; what is not known is noted.

    It has a folder in the user's cache directory, which is gone afterwards.
    """
    known = {name: held_out_of(name) for name in models}
    pairs_of_known = [pairs for pairs in known.values() if pairs is not None]
    among = frozenset.intersection(*pairs_of_known) if pairs_of_known else None
    with temporary_corpus(documents, settings, among=among) as corpus:
        if unknown := [name for name, pairs in known.items() if pairs is None]:
            reporter.note(
                f"It is not known what {', '.join(unknown)} was trained on: if it was this text, its scores are flattered."
            )
        if among is not None and not _digests(corpus.held_out) <= among:
            names = ", ".join(name for name in known if name not in unknown)
            reporter.note(
                f"No document of this text was held out when {names} was trained: unless the text is new to it, "
                "its scores are flattered."
            )
        yield corpus


def _digests(pairs: Dataset) -> frozenset[str]:
    return frozenset(pair_digest(query, passage) for query, passage in zip(pairs["query"], pairs["passage"], strict=True))
