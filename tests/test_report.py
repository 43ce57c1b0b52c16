"""The page about a run: it shows what the run folder holds, loads nothing, and lets no text act."""

import json
import random
import re
from pathlib import Path

import pytest
from conftest import TEXTS, BackboneMaker

from text2token.corpus.readers import read_documents
from text2token.errors import OutputError
from text2token.recipe import BackboneSettings, CorpusSettings, Recipe
from text2token.report import Line, chart, read_run, write_report
from text2token.training.folder import HISTORY
from text2token.training.run import train

HOSTILE = "<script>girl</script> & $hair$"


@pytest.fixture(scope="module")
def finished(make_backbone: BackboneMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "docs.txt").write_text(
        "\n".join(f"{number}. {' '.join(random.Random(number).sample(TEXTS, 3))} {HOSTILE}" for number in range(60)),
        encoding="utf-8",
    )
    tiny = BackboneSettings(str(make_backbone("llama_tied")), dtype="float32", max_length=96)
    recipe = Recipe(tiny, sources=(str(folder / "docs.txt"),), corpus=CorpusSettings(held_out=10)).with_settings(
        ["stage1.targets=data_driven", "stage1.tokens_per_batch=512", "lora.rank=4"]
    )
    train(recipe, read_documents(recipe.sources), run_folder=folder / "model.run", output=folder / "model")
    return folder / "model.run"


def test_a_page_shows_scores_course_words_map_and_settings_and_loads_nothing(finished: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert f"{results['evaluation']['trained']['mrr_at_10']:.1f}" in page
    assert page.count("<svg") == 4
    assert "optimiser step" in page
    assert "pooling = &#34;last&#34;" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page.replace("xlink:href", ""))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "#0500" not in page  # every placeholder has become one of the page's own colours
    assert "var(--series-0)" in page


def test_the_same_run_gives_the_same_page(finished: Path, tmp_path: Path) -> None:
    pages = [write_report(finished, tmp_path / name).read_text(encoding="utf-8") for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]


def test_a_run_under_way_is_shown_as_far_as_it_is(finished: Path, tmp_path: Path) -> None:
    going = tmp_path / "going.run"
    (going / "stages" / "stage1").mkdir(parents=True)
    (going / "recipe.toml").write_text((finished / "recipe.toml").read_text(encoding="utf-8"), encoding="utf-8")
    history = (finished / "stages" / "stage1" / HISTORY).read_text(encoding="utf-8")
    (going / "stages" / "stage1" / HISTORY).write_text(history[:-9], encoding="utf-8")  # torn by a kill
    page = write_report(going).read_text(encoding="utf-8")
    assert "not finished" in page
    assert page.count("<svg") == 3
    assert len(read_run(going).histories["stage1"]) == len(history.splitlines()) - 1


def test_a_model_that_has_moved_costs_only_the_map(finished: Path, tmp_path: Path) -> None:
    (finished.parent / "model").rename(tmp_path / "elsewhere")
    try:
        assert write_report(finished, tmp_path / "page.html").read_text(encoding="utf-8").count("<svg") == 3
    finally:
        (tmp_path / "elsewhere").rename(finished.parent / "model")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not the folder of a run"):
        write_report(tmp_path)


def test_a_chart_needs_a_line() -> None:
    assert chart([Line("one point", [(0, 1)])], "x", "y") is None
    drawing = chart([Line("<b>", [(0, 1), (1, 3)]), Line("other", [(0, 2), (1, 2)])], "x", "y")
    assert drawing is not None
    assert "&lt;b&gt;" in drawing
