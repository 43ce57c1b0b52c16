"""All speed figures by one command, as ratios of things measured in one run on one machine: `make bench`.

    python bench/experiments/run.py [SECTION …] [--suite DIR] [--ablations DIR] [--llm2vec-python PATH] [--write]

Sections: roofline, targets, training, simcse, llm2vec, encoding, students, memory, start; all without a name. Prints a
table and keeps all figures in `runs/bench.json`, where those of other sections stay if they are of the same machine and
versions; `--write` puts the table into bench/docs/performance.md. Let nothing else run meanwhile.
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
from measure import PAGE, Line, put_into_page, table

from text2token.cli.show import quiet_libraries

REPORT = Path("runs/bench.json")


def main() -> None:
    """Measure the sections asked for and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*")
    parser.add_argument("--suite", type=Path, help="Labelled tasks, to see what faster encoding costs in points.")
    parser.add_argument("--ablations", type=Path, help="Folder of ablations.py, to see what faster students cost in points.")
    parser.add_argument("--llm2vec-python", help="The interpreter of an environment with llm2vec (make bench-llm2vec).")
    parser.add_argument("--write", action="store_true", help=f"Put the table into {PAGE}.")
    chosen = parser.parse_args()
    quiet_libraries()
    sections: dict[str, Callable[[], list[Line]]] = {
        "roofline": speed.roofline,
        "targets": lambda: [*speed.targets(), *speed.model_derived_targets()],
        "training": speed.training,
        "simcse": speed.simcse,
        "llm2vec": lambda: speed.llm2vec(chosen.llm2vec_python),
        "encoding": lambda: speed.encoding(chosen.suite),
        "students": lambda: speed.students(chosen.ablations),
        "memory": memory.flat,
        "start": start.times,
    }
    if unknown := set(chosen.sections) - set(sections):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(sections)}")
    machine = f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    machine += f"; Python {sys.version.split()[0]}, torch {torch.__version__}"
    measured = _measured_before(machine)
    for name in chosen.sections or sections:
        measured[name] = sections[name]()
        REPORT.parent.mkdir(exist_ok=True)
        kept = {name: [asdict(line) for line in lines] for name, lines in measured.items()}
        REPORT.write_text(json.dumps({"machine": machine, "sections": kept}, indent=2, ensure_ascii=False), encoding="utf-8")
    figures = table([line for name in sections for line in measured.get(name, [])], f"{machine}.")
    print(f"\n{figures}\nAll figures: {REPORT}")
    if chosen.write:
        put_into_page(figures, "make bench")


def _measured_before(machine: str) -> dict[str, list[Line]]:
    """Return what earlier runs measured on this machine with these versions, by section."""
    try:
        report = json.loads(REPORT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if report.get("machine") != machine:
        return {}
    return {name: [Line(**line) for line in lines] for name, lines in report["sections"].items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or f"{os.cpu_count()} cores"


if __name__ == "__main__":
    main()
