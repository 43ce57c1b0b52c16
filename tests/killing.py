"""A process that runs our command line in children, each stopped by a signal at a chosen moment.

Starting Python and importing torch takes seconds in which nothing can be lost. So everything is imported once, and each
command runs in a fork of that: moments then fall into the work. A moment is either a time, or a number of changes to the
file system (as Python's audit events count them: files opened for writing, renamed, removed, folders made), which hits the
instants between two steps however fast the machine is. `python killing.py` reads jobs as lines of JSON and answers each.
"""

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


@dataclass(frozen=True)
class Moment:
    """When a command is stopped: `seconds` after its start, or `delay` seconds after its n-th change of files; None: never.

    `again` seconds later the signal is sent a second time.
    """

    seconds: float | None = None
    changes: int | None = None
    delay: float = 0.0
    number: int = signal.SIGKILL
    again: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal that ended it; the time it took; what it said."""

    code: int
    seconds: float
    changes: int
    said: str


class Launcher:
    """Starts commands in a folder, one at a time, as the command line would. `through` is what starts its process."""

    def __init__(self, environment: dict[str, str], through: Sequence[str] = ()) -> None:
        command = [*through, sys.executable, __file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, arguments: list[str], folder: Path, moment: Moment | None = None) -> Ended:
        """Run `text2token ARGUMENTS` in `folder` until it ends or its moment has come."""
        job = {"arguments": arguments, "folder": str(folder), "moment": asdict(moment or Moment())}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


def _prepare() -> None:
    """Import what the commands need, and make pieces of work so small that a small corpus has many."""
    from text2token.cli import show  # noqa: F401
    from text2token.export import (
        sparse,  # noqa: F401
        vectors,
    )
    from text2token.search import fill, index  # noqa: F401
    from text2token.targets import constructors, data_driven

    fill.BATCH = 16
    constructors.EXPENSIVE_TEXTS_PER_PART = 16
    constructors.TEXTS_PER_PART = data_driven.TEXTS_PER_PART = 40
    assert vectors.embed_corpus.__kwdefaults__
    vectors.embed_corpus.__kwdefaults__["rows_per_shard"] = 16


def _child(arguments: list[str], folder: str, moment: Moment, count: ctypes.c_long, said: Path) -> None:
    from text2token.cli.main import main

    def stop() -> None:
        os.kill(os.getpid(), moment.number)
        if moment.again is not None:
            time.sleep(moment.again)
            os.kill(os.getpid(), moment.number)

    def seen(event: str, details: tuple[Any, ...]) -> None:
        opened_to_write = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if opened_to_write or event in CHANGES:
            count.value += 1
            if count.value == moment.changes:
                if moment.delay or moment.number != signal.SIGKILL:
                    threading.Timer(moment.delay, stop).start()
                else:
                    stop()

    os.chdir(folder)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["text2token", *arguments]
    sys.addaudithook(seen)
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve_jobs() -> None:
    _prepare()
    count = ctypes.c_long.from_buffer(mmap.mmap(-1, 8))  # seen by parent and child
    for line in sys.stdin:
        job = json.loads(line)
        moment = Moment(**job["moment"])
        said = Path(job["folder"] + ".said")
        said.write_bytes(b"")  # here, because a child may be stopped before it has opened it
        count.value = 0
        started = time.monotonic()
        child = os.fork()
        if not child:
            _child(job["arguments"], job["folder"], moment, count, said)
        told = 0
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            passed = time.monotonic() - started
            if ended:
                break
            due = [moment.seconds, moment.seconds + moment.again if moment.seconds and moment.again else None]
            if told < 2 and due[told] is not None and passed >= due[told]:  # type: ignore[operator]
                os.kill(child, moment.number)
                told += 1
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(status)
        print(
            json.dumps(asdict(Ended(code, passed, count.value, said.read_text(encoding="utf-8", errors="replace")))),
            flush=True,
        )


if __name__ == "__main__":
    _serve_jobs()
