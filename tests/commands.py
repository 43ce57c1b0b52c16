"""Our command line, called as often as a test likes at the price of one start.

Starting Python and importing torch takes seconds, and a test of a command hardly more. So one process imports what others
have written, and forks for every command; our own modules are imported anew in each. A call with an environment of its own
gets a process of its own, because much of an environment is read by imports.
"""

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from conftest import PATIENCE

COMMAND = [sys.executable, "-m", "text2token"]
_started: list[subprocess.Popen[str]] = []


def call(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None, input: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `text2token ARGUMENTS` and return its exit code and all that it said."""
    words = list(map(str, arguments))
    if env is not None:
        command = [*COMMAND, *words]
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE, cwd=cwd, env=env, input=input
        )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stdin").write_text(input, encoding="utf-8")
        job = {"arguments": words, "cwd": str(cwd or Path.cwd()), "environment": dict(os.environ), "folder": folder}
        process = _server()
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        said = [(Path(folder) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess([*COMMAND, *words], code, *said)


def _server() -> subprocess.Popen[str]:
    if not _started:
        command = [sys.executable, __file__]
        path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        atexit.register(process.communicate)  # which ends it: there is nothing more to read
        _started.append(process)
    return _started[0]


def _child(job: dict[str, str], folder: Path) -> None:
    os.environ.clear()
    os.environ.update(job["environment"])  # type: ignore[arg-type]
    os.chdir(job["cwd"])
    os.dup2(os.open(folder / "stdin", os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    code = 0
    try:
        sys.argv = ["text2token", *job["arguments"]]
        runpy.run_module("text2token", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve_jobs() -> None:
    import text2token.export.vectors  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "text2token"]:
        del sys.modules[name]
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _child(job, Path(job["folder"]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve_jobs()
