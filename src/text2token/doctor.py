"""What this machine and this installation have, and the exact line that installs what is missing."""

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from text2token.model.backbone import resolve_dtype

PACKAGE = "text2token"
# what an extra is for; the names are those of pyproject.toml
USED_BY = {
    "docs": "make docs",
    "evaluate": "evaluate",
    "http": "sources that are https:// addresses",
    "onnx": "export --onnx",
    "ray": "targets, embed, train, run with --engine ray",
    "report": "report",
    "search": "index, search in an index",
    "serve": "serve",
    "dev": "make test",
}


@dataclass(frozen=True)
class Part:
    """The package itself (`extra` is empty) or one of its extras; `missing` names the requirements that are not met."""

    extra: str
    used_by: str
    missing: tuple[str, ...]

    @property
    def able(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    @property
    def remedy(self) -> str:
        """The line that installs what is missing; empty where nothing is."""
        if not self.missing:
            return ""
        return f"pip install '{PACKAGE}[{self.extra}]'" if self.extra else f"pip install --upgrade {PACKAGE}"


@dataclass(frozen=True)
class Diagnosis:
    """What the machine has, by name, and the parts of the installation, the package itself first."""

    machine: dict[str, str]
    parts: list[Part]

    @property
    def able(self) -> bool:
        """Whether all that training and embedding need is here."""
        return self.parts[0].able


def examine() -> Diagnosis:
    """Look at the machine and the installed packages. Nothing is asked of the network, and no model is loaded."""
    return Diagnosis(_machine(), _parts())


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory()
    cache = platformdirs.user_cache_path(PACKAGE)
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return {
        "text2token": importlib.metadata.version(PACKAGE),
        "Python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "processor": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores, "
        f"{torch.get_num_threads()} used, {torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GB free",
        "torch": torch.__version__,
        "accelerator": _accelerator(),
        "number format": f"{str(resolve_dtype('auto')).removeprefix('torch.')} where dtype is auto",
        "converted backbones": f"{cache} ({_free(cache):.0f} GB free)",
        "model hub": "switched off by HF_HUB_OFFLINE"
        if offline
        else os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
    }


def _accelerator() -> str:
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        return ", ".join(f"{device.name}, {device.total_memory / 2**30:.0f} GB" for device in devices)
    if torch.backends.mps.is_available():
        return "Apple's (embedding only; training uses the processor)"
    return "none: a 135M backbone trains in minutes without, a larger one wants one"


def _free(folder: Path) -> float:
    """Return the free gigabytes where `folder` is, or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free / 2**30


def _parts() -> list[Part]:
    requirements = [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or []]
    extras = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    parts = [Part("", "train, embed, search, lens", _missing(requirements, ""))]
    return parts + [Part(extra, USED_BY.get(extra, ""), _missing(requirements, extra)) for extra in sorted(extras)]


def _missing(requirements: list[Requirement], extra: str) -> tuple[str, ...]:
    """Return which of the requirements of `extra` (empty: of the package itself) are absent or of another version."""
    missing = []
    for requirement in requirements:
        of_others = extra and _applies(requirement, "")  # what the package itself needs is no extra's
        if of_others or not _applies(requirement, extra) or canonicalize_name(requirement.name) == PACKAGE:
            continue  # an extra of extras: each has a line of its own
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            here = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(wanted)
            continue
        if not requirement.specifier.contains(here, prereleases=True):
            missing.append(f"{wanted} (here is {here})")
    return tuple(missing)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})
