"""What comes from strangers is data: it is never run, never leaves its folder, and never becomes part of a page."""

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import BackboneMaker

import text2token
from text2token.errors import TargetMismatch, Text2TokenError
from text2token.lens.reader import open_reader
from text2token.model.backbone import load_embedder, open_embedder
from text2token.recipe import BackboneSettings
from text2token.targets.store import read_card

UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS = {"eval", "exec", "compile", "__import__"}


def test_nothing_is_unpickled_run_or_trusted() -> None:
    """No module of ours imports a pickler, runs text as code, loads with torch or numpy, or trusts a model's own code.

    Checkpoints hold the optimiser in torch's format; the stock trainer loads it with weights_only=True.
    """
    for path in sorted(Path(str(text2token.__file__)).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                if ast.unparse(node) == "from pickle import UnpicklingError":  # what torch raises where it refuses
                    continue
                names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
                assert not {name.partition(".")[0] for name in names} & UNPICKLES, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in RUNS | {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load"}, path
                assert "trust_remote_code" not in {keyword.arg for keyword in node.keywords}, path


class Opens:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.trace), "w")


def test_a_checkpoint_that_would_run_code_is_refused_by_the_loader_of_the_trainer(tmp_path: Path) -> None:
    torch.save({"state": Opens(tmp_path / "trace")}, tmp_path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert not (tmp_path / "trace").exists()


def test_code_beside_a_model_is_not_run(make_backbone: BackboneMaker, tmp_path: Path) -> None:
    trace, folder = tmp_path / "trace", tmp_path / "model"
    folder.mkdir()
    for file in make_backbone("llama_tied").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoModelForCausalLM": "own.Own"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(Text2TokenError):
        load_embedder(BackboneSettings(str(folder)))
    (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]', encoding="utf-8")
    with pytest.raises(Text2TokenError):
        open_embedder(str(folder))
    assert not trace.exists()


def test_weights_in_a_pickle_are_not_run(make_backbone: BackboneMaker, tmp_path: Path) -> None:
    trace, folder = tmp_path / "trace", tmp_path / "model"
    folder.mkdir()
    for file in make_backbone("llama_tied").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"lm_head.weight": Opens(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(Text2TokenError):
        load_embedder(BackboneSettings(str(folder)))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../outside.parquet", "/etc/passwd", "a/../../outside.parquet"])
def test_a_card_cannot_name_files_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.parquet").write_text("not ours", encoding="utf-8")
    (tmp_path / "targets").mkdir()
    shards = [{"file": name, "rows": 1, "sha256": "0"}]
    (tmp_path / "targets" / "card.json").write_text(json.dumps({"shards": shards}), encoding="utf-8")
    with pytest.raises(TargetMismatch):
        read_card(tmp_path / "targets")
    (tmp_path / "lens").mkdir()
    (tmp_path / "lens" / "reader.json").write_text(
        json.dumps({"words": [name], "vocabulary": {}, "source": name}), encoding="utf-8"
    )
    with pytest.raises(Text2TokenError):
        open_reader(tmp_path / "lens")
