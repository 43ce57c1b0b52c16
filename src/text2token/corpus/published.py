"""What may be published about the sources of texts and models: no credentials, and nothing that tells whose they are.

A URL may hold a password or a signature, a path the names of people and customers. Whatever leaves a run's folder (model
cards, `lens/reader.json`, report pages, cards of vectors) names of a text only the kind of its file, and of a model on
this machine only the last part of its path. Inside the folder paths are whole, and URLs without what lets in.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import tomli_w

ENDING = re.compile(r"(\.[a-z]{2,8})(\.(?:gz|zst))?$", re.IGNORECASE)
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
LOGIN = re.compile(r"^(/+)[^/@:]*:[^/@]*@")
MODELS = ("name", "teacher", "language_model")  # settings that name one


def without_secrets(place: str) -> str:
    """Return a URL, or a chain of them as fsspec has it, without user, password, query and fragment; a path unchanged."""
    return "::".join(_bare(part) if "://" in part else part for part in place.split("::"))


def published_source(source: str) -> str:
    """Return what may be published about a source of text: its kind."""
    if source == "python:stdlib":
        return source
    if source == "-":
        return "standard input"
    ending = ENDING.search(without_secrets(source))
    return f"*{ending[0]}" if ending else "*"


def published_model(name: str) -> str:
    """Return what may be published about the name of a model: all of a hub id or package, the last part of a path."""
    if "://" in name:
        return without_secrets(name)
    if name.startswith("pypi:") or (HUB_ID.fullmatch(name) and not os.path.exists(name)):
        return name
    return PureWindowsPath(name).name if "\\" in name else PurePosixPath(name).name


def published_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, as TOML or JSON has them, with what may be published about the sources and models in them."""
    published: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            value = published_settings(value)
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            value = [published_settings(one) for one in value]
        elif key == "sources":
            value = list(dict.fromkeys(published_source(source) for source in value))
        elif key in MODELS and isinstance(value, str):
            value = published_model(value)
        published[key] = value
    return published


def published_recipe(recipe: str) -> str:
    """Return a recipe, as TOML, with what may be published about the sources and models in it."""
    return tomli_w.dumps(published_settings(tomllib.loads(recipe)))


def _bare(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # no address that anything could open
        return f"{url.partition('://')[0]}://"
    path = LOGIN.sub(r"\1", parts.path)  # where a file system has no hosts, they are part of the path
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
