"""A figure has one source: what README says of results stands in bench/docs/results.md, and pages link what there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = (ROOT / "bench" / "docs" / "results.md").read_text(encoding="utf-8")
SCORE = re.compile(r"(?<![\d.])\d+\.\d(?: ± \d+\.\d)?(?![\d.])")


def prose(page: Path) -> list[str]:
    return [line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith("    ")]


def test_every_row_of_readme_is_a_row_of_the_results() -> None:
    rows = [SCORE.findall(line) for line in prose(ROOT / "README.md") if line.startswith("|")]
    there = [set(SCORE.findall(line)) for line in RESULTS.splitlines() if line.startswith("|")]
    shown = [row for row in rows if row]
    assert len(shown) > 3
    for row in shown:
        assert any(set(row) <= line for line in there), row


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "bench").glob("**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
