"""What a run makes does not change by accident: tokens of targets, weights, vectors and files are those of `golden.json`.

Figures are of float32 and compared with the error that processors of other kinds make. Bit for bit: golden.py.
"""

import json
from pathlib import Path
from typing import Any

import golden
import pytest


@pytest.fixture(scope="module", params=golden.RECIPES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of a run, and those that it should have."""
    folder = tmp_path_factory.mktemp(request.param)
    golden.make(request.param, folder)
    found = json.loads(json.dumps(golden.figures(folder)))
    return found, json.loads(golden.GOLDEN.read_text(encoding="utf-8"))[request.param]


def test_targets_are_the_same_tokens_with_the_same_weights(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, expected = both
    assert found["targets"].keys() == expected["targets"].keys()
    for stage, rows in expected["targets"].items():
        assert found["targets"][stage] == [pytest.approx(row, abs=1e-6, rel=1e-3) for row in rows]
    assert found["tokens"] == expected["tokens"]


def test_trained_weights_and_vectors_are_the_same(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, expected = both
    assert found["weights"].keys() == expected["weights"].keys()
    for stage, norms in expected["weights"].items():
        assert found["weights"][stage] == pytest.approx(norms, rel=1e-3)
    assert found["dense"] == pytest.approx(expected["dense"], rel=1e-3, abs=1e-6)
    assert found["cosines"] == pytest.approx(expected["cosines"], abs=1e-3)


def test_the_embedder_is_the_same_files_and_modules(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, expected = both
    assert found["files"] == expected["files"]
    assert found["configs"] == expected["configs"]


def test_the_golden_run_is_one_that_trains(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, expected = both
    for stage in expected["weights"].values():
        assert min(stage.values()) > 1e-4
    assert Path(golden.GOLDEN).stat().st_size < 40_000
