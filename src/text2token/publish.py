"""An embedder to a model hub: what would go there, said beforehand, and one commit that has all of it or nothing."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from text2token.corpus.published import HUB_ID, secrets_in
from text2token.errors import ModelError, OutputError, reason
from text2token.export.card import PLACE

CARD = "README.md"


@dataclass(frozen=True)
class Publication:
    """What a repository will hold: the files of `folder` by their names, with their bytes, and the model card."""

    repository: str
    folder: Path
    files: dict[str, int]
    card: str

    @property
    def size(self) -> int:
        """All files together, in bytes."""
        return sum(self.files.values())


def prepare_publication(folder: Path, repository: str) -> Publication:
    """Return what `publish` would send; nothing is asked of the network.

    Raises `ModelError` unless `folder` is an embedder that plain sentence-transformers loads, with a model card;
    `OutputError` where `repository` is no name that a hub can have, a link in the folder leads out of it, or an address in
    the card or in what reads the embedding has a user, a password or a query.
    """
    if not HUB_ID.fullmatch(repository):
        raise OutputError(f"{repository!r} is no repository of a hub; give OWNER/NAME")
    _check_embedder(folder)
    visible = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_hidden(path.relative_to(folder))]
    if elsewhere := [path for path in visible if not _belongs(path, folder)]:
        raise OutputError(f"{elsewhere[0]}: leads out of the folder, to {elsewhere[0].resolve()}; nothing is sent")
    card = (folder / CARD).read_text(encoding="utf-8").replace(PLACE, repository)
    for name in (CARD, *(file for file in ("lens/reader.json",) if (folder / file).is_file())):
        if secrets := secrets_in((folder / name).read_text(encoding="utf-8")):
            raise OutputError(
                f"{folder / name}: an address in it has a password or a query ({secrets[0]}), which may let in "
                "whoever reads it. Take it out; nothing is sent"
            )
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in visible}
    return Publication(repository, folder, files | {CARD: len(card.encode())}, card)


def publish(publication: Publication, private: bool = False) -> str:
    """Make the repository if it is not there, send everything in one commit, and return its address.

    The hub and the key are those of huggingface_hub (`HF_ENDPOINT`, `hf auth login` or `HF_TOKEN`). Raises `OutputError`
    where the hub cannot be reached or says no.
    """
    hub = HfApi()
    files = {name: str(publication.folder / name) for name in publication.files if name != CARD}
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations.append(CommitOperationAdd(CARD, publication.card.encode()))
    try:
        address = hub.create_repo(publication.repository, private=private, exist_ok=True)
        hub.create_commit(publication.repository, operations, commit_message="Embedder made with text2token")
    except OfflineModeIsEnabled:
        raise OutputError("HF_HUB_OFFLINE is set: nothing can be sent. Unset it, or look with --dry-run") from None
    except Exception as error:  # besides its own errors those of its HTTP library, which changes with its version
        raise OutputError(f"{publication.repository}: not sent ({reason(error)})") from error
    return str(address)


def _check_embedder(folder: Path) -> None:
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        foreign = [module["type"] for module in modules if not module["type"].startswith("sentence_transformers.")]
        absent = [module["path"] for module in modules if not (folder / module["path"]).is_dir()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ModelError(f"{folder}: is no embedder (there is no modules.json that can be read)") from None
    if foreign:
        raise ModelError(f"{folder}: needs code that is not sentence-transformers' ({foreign[0]})")
    if absent or not list(folder.rglob("*.safetensors")):
        raise ModelError(f"{folder}: is no whole embedder: {f'{absent[0]} is' if absent else 'its weights are'} missing")
    if not (folder / CARD).is_file():
        raise ModelError(f"{folder}: has no model card; write {folder / CARD}, so that others know what it is")


def _belongs(path: Path, folder: Path) -> bool:
    """Say whether a file lies in the folder, or, in a cache of the hub, among the files of the same repository."""
    home = folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    return path.resolve().is_relative_to(home)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
