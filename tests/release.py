"""Is the release whole? Builds it, installs the wheel into a clean environment, and uses every extra as soon as it is there.

python tests/release.py                # `make release-check`: some minutes, and a package index
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

import torch
import transformers
from conftest import TEXTS, family_configs, trained_byte_level

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TORCH = os.environ.get("TORCH", "torch==2.13.0")
TRAINING = ["--set", "backbone.max_length=64", "--set", "backbone.dtype=float32", "--max-tokens", "2000"]
# what to run once an extra is installed, in the order of this list; each leaves what the next ones use
USES: dict[str, list[list[str]]] = {
    "": [
        ["train", "docs.txt", "--backbone", "backbone", "--output", "embedder", *TRAINING],
        ["static", "docs.txt", "--backbone", "backbone", "--output", "table"],
        ["embed", "embedder", "docs.txt", "--output", "vectors"],
        ["lens", "embedder", "a girl plays the guitar"],
        ["export", "sparse", "embedder", "--output", "words"],
    ],
    "search": [
        ["index", "embedder", "docs.txt", "--store", "index"],
        ["search", "index", "a girl plays the guitar"],
        ["search", "embedder", "docs.txt", "a girl plays the guitar"],
    ],
    "report": [["report", "embedder.run"]],
    "evaluate": [["evaluate", "embedder", "table", "--corpus", "docs.txt", "--held-out", "20"]],
    "onnx": [["export", "onnx", "embedder", "--output", "small"]],
    "serve": [["serve", "--help"]],
}
ELSEWHERE = {"docs", "dev"}  # for those who change it, not for those who use it
IMPORTED = {"serve": "text2token.serve.server"}  # serving does not end by itself


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return what it printed; anything but success ends the check."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=clean, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def built(folder: Path) -> Path:
    """Return the wheel, made from the sdist as an index would have it, after a look at what is in both."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.is_file()}
    source = {name for name in source if "__pycache__" not in name and ".egg-info" not in name}
    assert source <= names, f"not in the wheel: {source - names}"
    assert {name for name in names if not name.startswith("text2token")} == set(), names
    with tarfile.open(sdist) as archive:
        inside = {re.sub(r"^[^/]*/", "", name) for name in archive.getnames()}
    assert {"tests/conftest.py", "docs/index.md", "LICENSE", "CHANGELOG.md"} <= inside
    return wheel


def prepared(folder: Path) -> Path:
    """Write a small corpus and a tiny backbone into `folder` and return it."""
    folder.mkdir()
    texts = [f"{one} Number {number} comes before this: {two}" for number in range(12) for one in TEXTS for two in TEXTS[:3]]
    (folder / "docs.txt").write_text("\n".join(texts), encoding="utf-8")
    tokenizer = trained_byte_level(TEXTS, size=600)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(family_configs(len(tokenizer))["llama_tied"]).save_pretrained(
        folder / "backbone"
    )
    tokenizer.save_pretrained(folder / "backbone")
    return folder


def main() -> None:
    """Do it, and say what was done."""
    assert set(USES) - {""} == set(PROJECT["optional-dependencies"]) - ELSEWHERE, "an extra that is not looked at"
    with tempfile.TemporaryDirectory(prefix="text2token-release-") as temporary:
        wheel, work = built(Path(temporary) / "dist"), prepared(Path(temporary) / "work")
        print(f"built {wheel.name}", flush=True)
        environment = Path(temporary) / "environment"
        run(sys.executable, "-m", "venv", environment)
        python = environment / "bin" / "python"
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, TORCH)
        for extra, uses in USES.items():
            run(*pip, f"{wheel}[{extra}]" if extra else wheel)
            for use in uses:
                run(environment / "bin" / "text2token", *use, cwd=work)
            if extra in IMPORTED:
                run(python, "-c", f"import {IMPORTED[extra]}")
            run(python, "-m", "pip", "check")
            print(f"{extra or 'text2token'}: installed and used, {', '.join(use[0] for use in uses)}", flush=True)


if __name__ == "__main__":
    main()
