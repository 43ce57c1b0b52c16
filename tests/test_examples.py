"""The examples run as they stand, on a tiny backbone and few documents."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from conftest import BackboneMaker

EXAMPLE = Path(__file__).parents[1] / "examples" / "before_and_after.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one, and no screen to draw on."""
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(**constants: object) -> None:
    """Run the example with some of its constants set to other values."""
    code = EXAMPLE.read_text(encoding="utf-8")
    for name, value in constants.items():
        (line,) = (line for line in code.splitlines() if line.startswith(f"{name} = "))
        code = code.replace(line, f"{name} = {value!r}")
    exec(code, {})
    plt.close("all")


def drawn(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("runs/before_and_after/*.png") if path.read_bytes().startswith(b"\x89PNG")}


def test_before_and_after_on_a_tiny_backbone(
    make_backbone: BackboneMaker, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(BACKBONE=str(make_backbone("llama_tied")), TOPICS=("email", "xml"), MAX_TOKENS=2000)
    assert drawn(folder) == {"words", "course", "map"}
    assert "MRR@10 on held-out documents" in capsys.readouterr().out
