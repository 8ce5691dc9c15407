"""Make the payloads of a release: measure every method that fits, keep the smallest that applied.

Each trial runs in a process of its own, within a bound on time and memory, and counts only after
its payload was applied and gave the image back, byte for byte (architecture.md decision 8).
"""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.errors import FileError, FirmamentError
from firmament.payload.methods import IN_PLACE, METHODS, Job
from firmament.payload.readers import BytesReader, FileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from firmament.payload.inplace.encoder import Shape

GIB: Final = 1024**3
PAYS_BELOW_RATIO: Final = 0.9
"""A delta above this part of the whole payload's length is not worth its storage."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one trial may take; a 400 MB image needs about half of it (docs/performance/delta.md)."""

    time_s: float = 1200
    cpu_s: int = 1200
    memory_bytes: int = 6 * GIB
    """Address space, which is more than what is resident."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One method on one pair."""

    method: str
    precursor: Path | None
    payload: Path
    length_bytes: int
    encode_cpu_s: float
    apply_cpu_s: float
    problem: str | None = None
    """Why there is no payload; None if it was applied and compared."""


def trial(
    method: str,
    precursor: Path | None,
    image: Path,
    payload: Path,
    *,
    bounds: Bounds | None = None,
    shape: Shape | None = None,
) -> Trial:
    """Make and verify one payload in a process of its own; a failure is a result, not an exception.

    `shape` is the flash that an in-place payload is for.
    """
    bounds = bounds or Bounds()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(method, precursor, image, payload, bounds, shape, theirs))
    worker.start()
    theirs.close()
    length, encode_s, apply_s, problem = 0, 0.0, 0.0, "it took too long"
    try:
        if ours.poll(bounds.time_s):
            length, encode_s, apply_s, problem = ours.recv()
    except EOFError:
        problem = "it died, probably of too little memory"
    finally:
        if worker.is_alive() and problem == "it took too long":
            worker.kill()
        worker.join()
        ours.close()
    if problem:
        payload.unlink(missing_ok=True)
    return Trial(method, precursor, payload, length, encode_s, apply_s, problem or None)


def trials(
    image: Path,
    precursors: Sequence[Path],
    directory: Path,
    *,
    methods: Iterable[str] | None = None,
    workers: int = 1,
    bounds: Bounds | None = None,
    shape: Shape | None = None,
    progress: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Try every available method on every precursor (and the whole image once); return all trials."""
    wanted = [METHODS[key] for key in methods] if methods is not None else list(METHODS.values())
    jobs: list[tuple[str, Path | None, Path]] = []
    for method in wanted:
        if method.is_available():
            name = method.key.replace("/", "-")
            sources: Sequence[Path | None] = precursors if method.is_delta else (None,)
            jobs += [(method.key, source, directory / f"{index}.{name}") for index, source in enumerate(sources)]

    def run(job: tuple[str, Path | None, Path]) -> Trial:
        found = trial(job[0], job[1], image, job[2], bounds=bounds, shape=shape)
        progress(found)
        return found

    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(run, jobs))


def whole_trial(image: Path) -> Trial:
    """Return the image itself as the payload that every other one is compared with."""
    return Trial("whole/1", None, image, image.stat().st_size, 0.0, 0.0)


def choose(found: Iterable[Trial]) -> list[Trial]:
    """Keep the smallest whole payload, and per precursor the smallest delta if it pays.

    Devices differ in what they can apply, so beside a library's delta the best one of the
    standard library stays too, and one for devices with a single slot always.
    """
    good = [one for one in found if one.problem is None]
    whole = sorted((one for one in good if one.precursor is None), key=lambda one: one.length_bytes)
    kept = whole[:1]
    limit = PAYS_BELOW_RATIO * whole[0].length_bytes if whole else float("inf")
    for precursor in dict.fromkeys(one.precursor for one in good if one.precursor is not None):
        deltas = sorted((one for one in good if one.precursor == precursor), key=lambda one: one.length_bytes)
        deltas = [one for one in deltas if one.length_bytes < limit]
        plain = [one for one in deltas if METHODS[one.method].library is None]
        single = [one for one in deltas if one.method == IN_PLACE]
        kept += list(dict.fromkeys(deltas[:1] + plain[:1] + single))
    return kept


def _work(
    method_key: str,
    precursor: Path | None,
    image: Path,
    payload: Path,
    bounds: Bounds,
    shape: Shape | None,
    answer: Connection,
) -> None:
    """Encode, store, apply, compare; runs in the trial's own process."""
    resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (bounds.cpu_s, bounds.cpu_s + 1))
    method = METHODS[method_key]
    try:
        old = precursor.read_bytes() if precursor is not None else b""
        new = image.read_bytes()
        begun = _cpu_s()
        if not method.pays(old, new):
            raise ValueError("there is nothing in these images that this method is for")  # noqa: TRY301 - a result
        made = method.encode(old, new) if shape is None or method_key != IN_PLACE else _in_place(old, new, shape)
        encoded = _cpu_s()
        payload.write_bytes(made)
        wanted, old_length = hashlib.sha256(new).digest(), len(old)
        image_length, payload_length = len(new), len(made)
        del old, new
        got = hashlib.sha256()
        source = FileReader(precursor) if precursor is not None else None
        job = Job(BytesReader(made), payload_length, image_length, source, old_length)
        for _, piece in method.apply(job):
            got.update(piece)
        if source is not None:
            source.close()
        problem = "" if got.digest() == wanted else "it made another image"
        answer.send((payload_length, encoded - begun, _cpu_s() - encoded, problem))
    except (FirmamentError, FileError, OSError, ValueError, MemoryError, RuntimeError) as error:
        answer.send((0, 0.0, 0.0, f"{type(error).__name__}: {error}"))
    finally:
        answer.close()


def _in_place(old: bytes, new: bytes, shape: Shape) -> bytes:
    from firmament.payload.inplace.encoder import encode

    return encode(old, new, shape)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
