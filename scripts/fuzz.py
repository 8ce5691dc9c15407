"""Mutation fuzz of every decoder, for a bounded time (`make fuzz`, FUZZ_S seconds, default 60).

Only errors of this house's tree may come out, each within SLOW_S seconds and MEMORY_BYTES. The
same FUZZ_SEED and the same number of executions give the same inputs. Exit 1 with a finding.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import resource
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fuzz_targets import Target, targets

from firmament.errors import FirmamentError

if TYPE_CHECKING:
    from collections.abc import Sequence

SLICE_S: Final = 0.25
SLOW_S: Final = 2.0
MEMORY_BYTES: Final = 2 * 1024**3
MAX_INPUT_BYTES: Final = 64 * 1024
MAX_FINDINGS_PER_TARGET: Final = 5
INTERESTING: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x0A, 0x22, 0x5C, 0x2F)
STRANGE: Final = ("\x00", "é", "\ud800", "/", "..", "\n", "A", "0")
NUMBERS: Final = (-1, 0, 1, 255, 256, 65_536, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**30)


@dataclass
class Finding:
    """An input that made a decoder break its promise."""

    target: str
    what: str
    data: bytes


def mutate(data: bytes, rng: random.Random, target: Target) -> bytes:
    """Return a changed copy: one to four small changes, or a change inside the JSON it holds."""
    if data[:1] in {b"{", b"["} and rng.random() < 0.5:
        changed = mutate_json(data, rng)
        if changed is not None:
            return changed
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        change_bytes(out, rng, target)
    if target.repair is not None and rng.random() < 0.8:
        return target.repair(bytes(out[:MAX_INPUT_BYTES]))
    return bytes(out[:MAX_INPUT_BYTES])


def change_bytes(out: bytearray, rng: random.Random, target: Target) -> None:
    at = rng.randrange(len(out) + 1)
    end = min(len(out), at + rng.choice((1, 2, 4, 8, 32, 512)))
    match rng.randrange(9):
        case 0 if out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        case 1 if out:
            out[at % len(out)] = rng.choice(INTERESTING)
        case 2:
            del out[at:end]
        case 3:
            out[at:at] = out[at:end] * rng.choice((1, 2, 40))
        case 4 if target.tokens:
            out[at:at] = rng.choice(target.tokens)
        case 5 if target.tokens:
            out[at:end] = rng.choice(target.tokens)
        case 6:
            del out[at:]
        case 7:
            other = rng.choice(target.seeds)
            out[at:] = other[rng.randrange(len(other) + 1) :]
        case _:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 16)))


def mutate_json(data: bytes, rng: random.Random) -> bytes | None:
    """Change one place of a JSON value and spell it again."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    places: list[tuple[Any, Any]] = []
    collect(value, places)
    if not places:
        return None
    container, key = rng.choice(places)
    if isinstance(container, dict) and rng.random() < 0.2:
        del container[key]
    else:
        container[key] = other_value(container[key], rng)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")[:MAX_INPUT_BYTES]


def collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        places.append((value, key))
        collect(value[key], places)


def other_value(value: Any, rng: random.Random) -> Any:
    match rng.randrange(8):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return rng.choice([None, True, False, 1.5, [], {}, "", [[]], {"a": {}}])
        case 2 if isinstance(value, str):
            return value * rng.choice((0, 2, 100))
        case 3 if isinstance(value, str):
            return value[: rng.randrange(len(value) + 1)] + rng.choice(STRANGE)
        case 4 if isinstance(value, list):
            return value * rng.choice((2, 70))
        case 5 if isinstance(value, dict):
            return {**value, "": value}
        case _:
            return [value]


def execute(target: Target, data: bytes) -> str | None:
    """Run one input; returns what was wrong, None if nothing was."""
    started_s = time.process_time()
    try:
        target.run(data)
    except FirmamentError:
        pass
    except target.allowed:
        pass
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} at {Path(place.filename).name}:{place.lineno}"
    took_s = time.process_time() - started_s
    return f"took {took_s:.1f} s of processor time" if took_s > SLOW_S else None


def minimise(target: Target, data: bytes, what: str) -> bytes:
    """Cut pieces out while the same finding stays."""
    kind = what.partition(":")[0]
    size = len(data) // 2
    while size and not what.startswith("took"):
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            again = execute(target, shorter)
            if again is not None and again.partition(":")[0] == kind:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def fuzz(
    chosen: Sequence[Target], rng: random.Random, *, seconds: float, executions: int | None = None
) -> tuple[Counter[str], list[Finding]]:
    """Give each target a slice of time in turn; `executions` per target instead bounds a test."""
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    for target in chosen:
        for seed in target.seeds:
            counts[target.name] += 1
            if (what := execute(target, seed)) is not None:
                findings.append(Finding(target.name, what, seed))
    ends_at_s = time.monotonic() + seconds
    seen = {(finding.target, finding.what) for finding in findings}
    rounds = 0
    while time.monotonic() < ends_at_s and (executions is None or rounds == 0):
        rounds += 1
        for target in chosen:
            slice_ends_s = min(ends_at_s, time.monotonic() + SLICE_S)
            left = executions
            while (left is None and time.monotonic() < slice_ends_s) or (left is not None and left > 0):
                left = None if left is None else left - 1
                data = mutate(rng.choice(target.seeds), rng, target)
                counts[target.name] += 1
                what = execute(target, data)
                if what is None or (target.name, what) in seen:
                    continue
                seen.add((target.name, what))
                if sum(1 for finding in findings if finding.target == target.name) < MAX_FINDINGS_PER_TARGET:
                    findings.append(Finding(target.name, what, minimise(target, data, what)))
    return counts, findings


def main() -> int:
    seconds = float(os.environ.get("FUZZ_S", "60"))
    seed = int(os.environ.get("FUZZ_SEED", "1"))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES if soft == resource.RLIM_INFINITY else soft, hard))
    chosen = [target for target in targets() if not sys.argv[1:] or target.name in sys.argv[1:]]
    logging.disable()  # decoders warn about every damaged copy
    counts, findings = fuzz(chosen, random.Random(seed), seconds=seconds)
    for target in chosen:
        print(f"{counts[target.name]:>9}  {target.name}")
    for finding in findings:
        print(f"finding in {finding.target}: {finding.what}")
        print(f"  input ({len(finding.data)} bytes, base64): {base64.b64encode(finding.data[:1024]).decode()}")
    print(f"fuzz: {sum(counts.values())} executions of {len(chosen)} decoders, seed {seed}, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
