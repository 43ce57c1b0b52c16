"""Does `text2token serve` keep its memory? Mixed requests, good and bad, for some minutes; its memory and files are watched.

    python bench/experiments/soak.py MODEL INDEX --minutes 10

The verdict compares the second half with the end of the first quarter: memory may not grow by more than 5 percent, and open
files not at all beyond what the clients' connections vary by.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx2
import psutil

WORDS = ["cat", "sofa", "thread", "daemon", "returns", "string", "lock", "buffer", "coffee", "prices", "moon", "file"]
CLIENTS = 4
GROWTH, FILES = 1.05, 2 * CLIENTS


def requests_of(chance: random.Random) -> tuple[str, bytes]:
    """Return the path and the body of some request: most can be answered, some can not."""
    text = " ".join(chance.choices(WORDS, k=chance.randint(1, 60)))
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 30))) for _ in range(chance.randint(1, 16))]
    asked: list[tuple[str, object]] = [
        ("/v1/embeddings", {"input": texts}),
        ("/v1/embeddings", {"input": text, "encoding_format": "base64", "dimensions": 8}),
        ("/v1/lens", {"texts": texts[:3], "pair": [text, texts[0]]}),
        ("/v1/search", {"query": text, "k": 5}),
        ("/v1/search", {"query": text, "mode": "sparse", "filters": {"none": "such"}}),
        ("/v1/embeddings", {"input": ["\ud800", text]}),
        ("/v1/embeddings", {"input": [[1, 2]]}),
        ("/v1/lens", {"texts": "x" * 200_000}),
    ]
    path, body = chance.choices(asked, weights=[6, 3, 3, 6, 1, 1, 1, 1])[0]
    content = json.dumps(body).encode()
    return path, content[: len(content) // 2] if chance.random() < 0.02 else content


def ask(address: str, seed: int, until: float, pause: float, answers: Counter[int]) -> None:
    """Send one request after the other, on a connection that is renewed now and then."""
    chance = random.Random(seed)
    while time.monotonic() < until:
        with httpx2.Client(base_url=address, timeout=60) as client:
            for _ in range(200):
                path, content = requests_of(chance)
                headers = {"Content-Type": "application/json"}
                answers[client.post(path, content=content, headers=headers).status_code] += 1
                time.sleep(pause)
                if time.monotonic() >= until:
                    return


def main() -> None:
    """Serve, ask, watch, and say whether it stayed flat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("index")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0, help="seconds that a client waits between two requests")
    asked = parser.parse_args()
    command = [sys.executable, "-m", "text2token", "serve", asked.model, "--index", asked.index, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr
    address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
    watched, answers = psutil.Process(server.pid), Counter[int]()
    started = time.monotonic()
    until = started + 60 * asked.minutes
    clients = [threading.Thread(target=ask, args=(address, seed, until, asked.pause, answers)) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    samples: list[tuple[float, int]] = []  # megabytes, open files
    while time.monotonic() < until:
        samples.append((watched.memory_info().rss / 1e6, watched.num_fds()))
        time.sleep(1)
    for client in clients:
        client.join()
    server.terminate()
    server.wait(30)
    quarter = samples[len(samples) // 4 - len(samples) // 20 : len(samples) // 4]
    rest = samples[len(samples) // 2 :]
    before, after = (max(memory for memory, _ in part) for part in (quarter, rest))
    files_before, files_after = (max(files for _, files in part) for part in (quarter, rest))
    minutes = (time.monotonic() - started) / 60
    print(f"{sum(answers.values()):,} requests in {minutes:.1f} minutes, by status {dict(sorted(answers.items()))}")
    print("memory, MB, each tenth:", *(f"{samples[at][0]:.0f}" for at in _tenths(len(samples))))
    print("open files, each tenth:", *(samples[at][1] for at in _tenths(len(samples))))
    flat = after <= GROWTH * before and files_after <= files_before + FILES and not any(code >= 500 for code in answers)
    print(f"memory {before:.0f} → {after:.0f} MB, files {files_before} → {files_after}: {'flat' if flat else 'NOT FLAT'}")
    sys.exit(not flat)


def _tenths(count: int) -> list[int]:
    return [min(count - 1, round(count * tenth / 10)) for tenth in range(11)]


if __name__ == "__main__":
    main()
