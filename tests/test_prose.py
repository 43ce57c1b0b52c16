"""The product speaks the field's words: what its readers meet for the first time needs no glossary."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for path in (ROOT / "src").rglob("*")
    if path.suffix in {".py", ".jinja", ".html", ".js", ".css", ".toml"} and "__pycache__" not in path.parts
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
AUTHORSHIP = r"\(ours\)|\bours\b|\bof ours\b|\bour (method|training|own|server|models?)\b"  # that belongs to docs/method.md

INSTEAD = {  # what is written → what is not
    "in-domain, held-out": r"\bown texts?\b|\bat home\b|\babroad\b",
    "post-processing (none, centred, whitened)": (
        r"\b(the|every|best|all|of) finish(es)?\b|\bfinished_by\b|\b(as it|as they) comes?\b"
    ),
    "positives, negatives": r"\bstrangers?\b|\bown_among_others\b|\bown among others\b|what belongs to it",
    "similar, similarity, top-k, interpolate": r"\balike\b|\blikeness\b|\bheaviest\b",
    "decoded tokens, key tokens": (
        r"\bsaid words?\b|SaidWord|\b(embedd\w+|vectors?|head|model|both|texts) says?\b|\bsays? (most|of a word)\b"
    ),
    "resumes, is reused": r"\bgo(es|ne)? on (from|after|where|with)\b|taken from there|\bleft to it\b|\bon with --resume",
    "modules, package, architecture": r"\b(this|which|the|rooms?) rooms?\b|\brooms\b|\bhow the house\b",
    "history, evaluation step, callback": r"\b[Dd]iar(y|ies)\b(?!\.jsonl)|\bclass (Watch|Moment)\b|\blooks\b",
    "static embeddings": r"\btables? of (word |token )?vectors\b",
    "no significant difference (n seeds)": r"\b(is|are|was|were|be|been) level\b|\blevel (with|on)\b",
    "what goes wrong, and why": r"\btraps?\b",
}


@pytest.mark.parametrize("word", INSTEAD)
def test_the_words_are_those_of_the_field(word: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in [*SOURCES, *PAGES]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in re.finditer(INSTEAD[word], line)
    ]
    assert not found, f"write {word}"


def test_who_made_what_is_told_by_the_method_alone() -> None:
    others = [page for page in PAGES if page.name != "method.md"]
    assert not [page.name for page in others if re.search(AUTHORSHIP, page.read_text(encoding="utf-8"))]
