"""A small embedder with its reader and its index, and a server on a free port of the loopback."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from conftest import PATIENCE, TEXTS
from starlette.types import ASGIApp

from text2token.corpus.documents import Document
from text2token.export.static import build_static
from text2token.lens.fit import learn_from_words
from text2token.lens.reader import FOLDER, PROBE, as_fast_tokenizer, save_reader
from text2token.model.backbone import open_embedder
from text2token.model.encoder import encoder_of
from text2token.recipe import BackboneSettings
from text2token.search.index import fill_index

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"> listens to the socket"
RIGHT_TO_LEFT = "القطة تنام على الأريكة 🐈🐈 while the cat sleeps and a girl plays a guitar 🎸"
DOCUMENTS = [
    Document(text, f"docs.jsonl:{number}", fields={"year": 2000 + number % 3})
    for number, text in enumerate([*TEXTS, HOSTILE, RIGHT_TO_LEFT, "guitar " + "very " * 400 + "long"], start=1)
]


def make_model(backbone: Path, folder: Path) -> Path:
    """Write an embedder without layers and its reader, both of the ten texts and their pairs, to `folder`."""
    build_static(BackboneSettings(str(backbone), dtype="float32"), DOCUMENTS, folder)
    model = open_embedder(str(folder))
    encoder = encoder_of(model, "table")
    texts = [f"{one} {two}" for one in TEXTS for two in TEXTS if one != two]
    reader = learn_from_words(texts, encoder(texts), encoder(PROBE), as_fast_tokenizer(model.tokenizer))
    save_reader(reader, folder / FOLDER)
    return folder


def make_index(model: Path, folder: Path) -> Path:
    """Write an index of `DOCUMENTS` to `folder`."""
    fill_index(folder, str(model), DOCUMENTS)
    return folder


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Yield the address of a server of `app`, which ends in order with the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
