"""Where the parts of large work are done: here, one after the other, or on the workers of a Ray cluster.

Work is cut into parts that do not need each other, and what comes of a part is a file under its final name or a few numbers
to be added up. So there is nothing to shuffle, both engines make the same files, and a stopped run resumes from those that
are there. That is less than Ray Data does, on purpose: it would own the shards.

For Ray the work is pickled, its model with it, so it may hold nothing that belongs to this process, and the
folders that it reads and writes must be the same ones on every machine of the cluster.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from text2token.errors import EngineUnavailable, Text2TokenError, UsageError, reason

if TYPE_CHECKING:  # a worker starts in a second without torch
    from text2token.progress import Progress

Part = TypeVar("Part")
Result = TypeVar("Result")

TRIES_OF_A_PART = 4  # a worker that dies is started anew: machines go away, but a part that kills each of them must end


class Engine(Protocol):
    """Does work part by part."""

    def map(
        self,
        work: "Callable[[Part, Progress], Result]",
        parts: Iterable[Part],
        progress: "Progress | None" = None,
        *,
        runs_model: bool = False,
    ) -> Iterator[Result]:
        """Yield what `work` returns for each of `parts`, in the order in which they are done.

        `work` is called with a part and a function that it tells how many units it has done; `progress` hears of them.
        `runs_model` says that a GPU helps. What `work` raises, this raises.
        """


class LocalEngine:
    """Does one part after the other in this process."""

    def map(
        self,
        work: "Callable[[Part, Progress], Result]",
        parts: Iterable[Part],
        progress: "Progress | None" = None,
        *,
        runs_model: bool = False,
    ) -> Iterator[Result]:
        """Yield the results in the order of `parts`; `progress` hears of every batch."""
        for part in parts:
            yield work(part, progress or _unheard)


class RayEngine:
    """Does the parts on Ray's workers: one for every GPU where the work runs a model and there are any, else for every core.

    `workers` bounds their number. A worker holds one copy of the work, its model included, and takes part after part; one
    that dies is started again and its part done again. No more parts wait than there are workers, so they may be read from
    a stream. Workers stay for the next work: to start one takes seconds. Ray itself must have been started (`open_engine`).
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers
        self._idle: list[Any] = []

    def map(
        self,
        work: "Callable[[Part, Progress], Result]",
        parts: Iterable[Part],
        progress: "Progress | None" = None,
        *,
        runs_model: bool = False,
    ) -> Iterator[Result]:
        """Yield the results in their order of arrival; `progress` hears of a part when it is done."""
        import ray
        from ray.util import ActorPool

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if runs_model else 0
        if gpus:
            self._dismiss(self._idle)
        count = min(gpus or int(resources["CPU"]), self.workers or 1_000_000)
        start: Any = ray.remote(_Worker).options(
            num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=TRIES_OF_A_PART - 1
        )
        held = [ray.put(work)]  # in a list Ray hands on the reference; the object lives as long as this one does
        actors, self._idle = self._idle, []
        pool = ActorPool(list(actors))

        def finished() -> Result:
            result, units = pool.get_next_unordered()
            (progress or _unheard)(units)
            return result  # type: ignore[no-any-return]

        try:
            for part in parts:
                if not pool.has_free():
                    if len(actors) < count:
                        actors.append(start.remote())
                        pool.push(actors[-1])
                    else:
                        yield finished()
                pool.submit(lambda actor, part: actor.do.remote(held, part), part)
            while pool.has_next():
                yield finished()
            if not gpus:
                ray.get([actor.forget.remote() for actor in actors])
                self._idle, actors = actors, []
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Text2TokenError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise EngineUnavailable(
                f"a Ray worker died, {TRIES_OF_A_PART} times with one part ({reason(error)}). "
                "Out of memory? Each worker holds the model: start Ray with fewer --num-cpus"
            ) from error
        finally:
            self._dismiss(actors)

    @staticmethod
    def _dismiss(actors: list[Any]) -> None:
        import ray

        while actors:
            ray.kill(actors.pop())


class _Worker:
    """An actor on the cluster, which unpickles a work once and then does its parts."""

    def __init__(self) -> None:
        self.held: Any = None
        self.work: Any = None

    def do(self, held: list[Any], part: Any) -> tuple[Any, int]:
        """Return what the work makes of `part`, and how many units it said it had done."""
        if self.held != held[0]:
            import ray

            self.held, self.work = held[0], ray.get(held[0])
        units: list[int] = []
        return self.work(part, units.append), sum(units)

    def forget(self) -> None:
        """Let go of the work, and with it of its model."""
        self.held = self.work = None


def check_written(folder: Path, rows: Mapping[str, int]) -> None:
    """Raise `EngineUnavailable` unless `folder`, as this machine sees it, has each Parquet file of `rows` with so many rows.

    Whoever has work done elsewhere asks for it at the end: a worker that sees another disk under the same path writes there,
    and nothing else would tell.
    """
    import pyarrow.parquet as pq

    for name, expected in sorted(rows.items()):
        path = folder / name
        try:
            found = pq.read_metadata(path).num_rows
        except FileNotFoundError:
            found = None
        if found != expected:
            there = "is not here" if found is None else f"has {found:,} rows here"
            raise EngineUnavailable(
                f"{path}: {there}, though a worker wrote it with {expected:,}. All machines must see the same files under "
                "the same path: choose an --output on a disk that they share"
            )


@contextmanager
def open_engine(name: str = "local", ray_address: str | None = None, workers: int | None = None) -> Iterator[Engine]:
    """Yield the engine `name`, local or ray, and stop what was started for it in the end.

    Ray runs at `ray_address` (`auto`, `host:6379`, or that of RAY_ADDRESS); where none is given it is started here, with
    `workers` of the cores or all. Raises `UsageError` for a name or setting that does not fit, `EngineUnavailable` when
    there is no Ray at the address.
    """
    if name not in ("local", "ray"):
        raise UsageError(f"--engine is {name!r}; choose local or ray")
    if name == "local":
        if ray_address:
            raise UsageError("--ray-address needs --engine ray")
        yield LocalEngine()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("--engine ray needs the package ray: pip install 'text2token[ray]'") from None
    address = ray_address or os.environ.get("RAY_ADDRESS")
    own = {} if address else {"num_cpus": workers, "include_dashboard": False}
    host, _, port = (address or "").rpartition(":")
    try:
        if host and port.isdigit():  # Ray would try for minutes
            socket.create_connection((host.rpartition("/")[2], int(port)), timeout=10).close()
        ray.init(address, logging_level="ERROR", log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineUnavailable(f"no Ray at {address or 'this machine'} ({reason(error)})") from error
    try:
        yield RayEngine(workers)
    finally:
        ray.shutdown()


def _unheard(units: int) -> None:
    """Tell nobody."""
