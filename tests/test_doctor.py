import importlib.metadata
import json
from email.message import Message

import pytest
from typer.testing import CliRunner

from text2token.cli.commands import app
from text2token.doctor import examine

HERE = {"torch": "2.13.0+cpu", "numpy": "1.26.0", "fastapi": "0.200.0"}


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requirements of the package, to be changed by a test; what is installed is `HERE`."""
    requirements = [
        "torch<3,>=2.6",
        "tomli>=2; python_version < '3.0'",
        "fastapi<1,>=0.165; extra == 'serve'",
        "uvicorn[standard]<1,>=0.54; extra == 'serve'",
        "text2token[serve]; extra == 'dev'",
    ]
    described = Message()
    for extra in ("serve", "dev"):
        described["Provides-Extra"] = extra

    def version(name: str) -> str:
        if name == "text2token":
            return "9.9"
        if name not in HERE:
            raise importlib.metadata.PackageNotFoundError(name)
        return HERE[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: described)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return requirements


def test_an_extra_says_what_it_misses_and_the_line_that_installs_it(installation: list[str]) -> None:
    whole, dev, serve = examine().parts
    assert (whole.extra, whole.missing, whole.remedy) == ("", (), "")
    assert (dev.extra, dev.missing) == ("dev", ())
    assert serve.missing == ("uvicorn<1,>=0.54",)
    assert serve.remedy == "pip install 'text2token[serve]'"
    assert examine().able


def test_a_package_of_another_version_is_missing_too(installation: list[str]) -> None:
    installation.append("numpy<3,>=2.0")
    diagnosis = examine()
    assert diagnosis.parts[0].missing == ("numpy<3,>=2.0 (here is 1.26.0)",)
    assert not diagnosis.able
    answer = CliRunner().invoke(app, ["doctor"])
    assert "missing: numpy" in answer.output
    assert "pip install --upgrade text2token" in str(answer.exception)


def test_the_command_knows_this_very_installation() -> None:
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert said["machine"]["text2token"] == importlib.metadata.version("text2token")
    assert said["parts"][0]["missing"] == []
    assert {"evaluate", "dev"} <= {part["extra"] for part in said["parts"]}
    assert all(part["used_by"] for part in said["parts"])
