"""How long a person waits for help, and a program for the import."""

import statistics
import subprocess
import sys

from measure import Line, seconds


def times() -> list[Line]:
    """Return the time of `text2token --help` and of `import text2token`, median of five new processes."""
    commands = {
        "`text2token --help`": ([sys.executable, "-m", "text2token", "--help"], 0.5),
        "`import text2token`": ([sys.executable, "-c", "import text2token"], 1.0),
    }
    lines = []
    for name, (command, limit) in commands.items():
        taken = [seconds(lambda command=command: subprocess.run(command, capture_output=True, check=True)) for _ in range(6)]  # type: ignore[misc]
        median = statistics.median(taken[1:])
        lines.append(Line(name, "", f"{median:.2f} s", f"< {limit:g} s", median < limit, {"seconds": taken}))
        print(f"{name}: {median:.2f} s", flush=True)
    return lines
