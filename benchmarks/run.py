"""All speed figures by one command, as ratios of things measured in one run on one machine: `make bench`.

    python benchmarks/run.py [SECTION …] [--suite DIR] [--llm2vec-python PATH] [--write]

Sections: roofline, targets, training, peers, encoding, memory, start; all without a name. Prints a table and keeps all
figures in `runs/bench.json`; `--write` puts the table into docs/performance.md. Let nothing else run meanwhile.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import memory
import speed
import start
import torch
from measure import Line

from text2token.terminal import quiet_libraries

REPORT = Path("runs/bench.json")
PAGE = Path("docs/performance.md")
BEGIN, END = "<!-- figures: make bench -->", "<!-- end of figures -->"


def main() -> None:
    """Measure the sections asked for and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*")
    parser.add_argument("--suite", type=Path, help="Labelled tasks, to see what faster encoding costs in points.")
    parser.add_argument("--llm2vec-python", help="The interpreter of an environment with llm2vec (make bench-llm2vec).")
    parser.add_argument("--write", action="store_true", help=f"Put the table into {PAGE}.")
    chosen = parser.parse_args()
    quiet_libraries()
    sections: dict[str, Callable[[], list[Line]]] = {
        "roofline": speed.roofline,
        "targets": speed.targets,
        "training": speed.training,
        "peers": lambda: speed.peers(chosen.llm2vec_python),
        "encoding": lambda: speed.encoding(chosen.suite),
        "memory": memory.flat,
        "start": start.times,
    }
    if unknown := set(chosen.sections) - set(sections):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(sections)}")
    lines = [line for name in chosen.sections or sections for line in sections[name]()]
    machine = f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}"
    REPORT.parent.mkdir(exist_ok=True)
    report = {"machine": machine, "versions": versions, "lines": [asdict(line) for line in lines]}
    REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False))
    table = _table(lines, f"{machine}; {versions}.")
    print(f"\n{table}\nAll figures: {REPORT}")
    if chosen.write:
        page = PAGE.read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}")


def _table(lines: list[Line], machine: str) -> str:
    marks = {True: "yes", False: "**no**", None: ""}
    rows = [f"| {line.work} | {line.other} | {line.figure} | {line.reach} | {marks[line.reached]} |" for line in lines]
    head = "| work | compared with | measured | reach | reached |\n|---|---|---|---|---|"
    return "\n".join([f"Machine: {machine}", "", head, *rows, ""])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or f"{os.cpu_count()} cores"


if __name__ == "__main__":
    main()
