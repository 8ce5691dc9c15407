"""`firmament release delta`: make deltas for the versions in the fleet, before a release is signed."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.common import output, output_options, passphrase_option
from firmament.cli.release_seal import sealer_of
from firmament.cli.workspace import connect, open_workspace, server_options, size, workspace_option
from firmament.core.ids import release_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from firmament.payload.choose import Trial
    from firmament.payload.inplace.encoder import Shape
    from firmament.release.delta import Made, Missing, Precursor

MIB: Final = 1024**2
DEFAULT_SEGMENT_BYTES: Final = 4096
DEFAULT_WORKERS: Final = max(1, min(4, (os.cpu_count() or 1)))
WHOLE: Final = "whole image"


@click.command("delta")
@click.argument("product")
@click.argument("version")
@click.option("--from", "versions", multiple=True, metavar="V", help="An old version; repeat for several.")
@click.option("--method", "methods", multiple=True, metavar="NAME/VERSION", help="Try only these; default: all.")
@click.option("--in-place", is_flag=True, help="Also one for microcontrollers with a single slot.")
@click.option("--memory-size", type=click.IntRange(256), help="Bytes of that slot. [default: the longer image]")
@click.option("--segment-size", type=click.IntRange(256, 1 << 20), help="Bytes erased at once. [default: 4096]")
@click.option("--scratch-segments", type=click.IntRange(1, 64), help="Segments to save old ones in. [default: 1]")
@click.option("--workers", type=click.IntRange(1, 64), default=DEFAULT_WORKERS, help="Deltas at the same time.")
@click.option("--time-limit", type=click.IntRange(1), default=1200, show_default=True, help="Seconds for each delta.")
@click.option("--memory-limit", type=click.IntRange(64), default=6144, show_default=True, help="MiB for each delta.")
@server_options
@workspace_option
@passphrase_option
@output_options
def delta(
    product: str,
    version: str,
    versions: tuple[str, ...],
    methods: tuple[str, ...],
    in_place: bool,  # noqa: FBT001 - click's shape
    memory_size: int | None,
    segment_size: int | None,
    scratch_segments: int | None,
    workers: int,
    time_limit: int,
    memory_limit: int,
    server: str | None,
    ca: Path | None,
    token_file: Path | None,
    workspace: Path,
    passphrase_file: Path | None,
) -> None:
    """Make deltas for PRODUCT VERSION, which is built and not signed yet.

    Without --from the server is asked which versions are alive in the fleet, and the most common ones
    whose images are in this workspace get one. Every delta is applied and compared before it
    counts, and dropped when it does not pay. The deltas of a sealed release are sealed as well.
    With --in-place there is also one that a microcontroller applies over its only copy, in 32 KiB of
    memory; its image is MCUboot's or any other that Cortex-M code is in.
    """
    from firmament.payload.choose import Bounds
    from firmament.release import delta as deltas

    shape = _shape(memory_size, segment_size, scratch_segments, is_wanted=in_place)
    out, opened = output(), open_workspace(workspace)
    release = release_id(product, version)
    built = deltas.open_build(opened, release)
    missing: list[Missing] = []
    if versions:
        precursors = deltas.named(opened, built, versions)
    else:
        with connect(opened, server=server, ca=ca, token_file=token_file) as api:
            images = api.call("GET", f"/api/v1/products/{product}/images")["images"]
        precursors, missing = deltas.alive(opened, built, images)
    sealer = sealer_of(opened, built, passphrase_file) if built.plain else None
    bounds = Bounds(time_s=time_limit, cpu_s=time_limit, memory_bytes=memory_limit * MIB)
    with _progress(precursors, methods) as tell:
        made = deltas.make(
            opened,
            built,
            precursors,
            workers=workers,
            bounds=bounds,
            methods=methods,
            sealer=sealer,
            in_place=shape,
            progress=tell,
        )
    facts = made.to_json() | {"missing": [one.to_json() for one in missing]}
    out.document("deltas", facts, lines=_lines(made, missing))
    out.next_command(f"firmament release sign {release}")


def _shape(memory: int | None, segment: int | None, ring: int | None, *, is_wanted: bool) -> Shape | None:
    """Return the flash of devices with one slot; raises click's UsageError."""
    if not is_wanted:
        if memory or segment or ring:
            raise click.UsageError("--memory-size, --segment-size and --scratch-segments belong to --in-place")
        return None
    from firmament.payload.inplace.encoder import Shape

    size_bytes = segment or DEFAULT_SEGMENT_BYTES
    if size_bytes & (size_bytes - 1):
        raise click.BadParameter("a segment is a power of two", param_hint="--segment-size")
    if (memory or 0) % size_bytes:
        raise click.BadParameter("the memory is not a whole number of segments", param_hint="--memory-size")
    return Shape(memory or 0, size_bytes.bit_length() - 1, ring or 1)


def _lines(made: Made, missing: list[Missing]) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    for source, trial in made.kept:
        saved = 1 - trial.length_bytes / made.built.manifest.image.length_bytes
        devices = f"{source.devices} devices" if source is not None and source.devices is not None else ""
        label = source.version if source is not None else WHOLE
        rows.append((label, trial.method, size(trial.length_bytes), f"{saved:.0%} smaller", devices))
    lines = output().table(rows, header=["from", "method", "size", "saved", "devices"]) if rows else []
    kept = {source.version for source, _ in made.kept if source is not None}
    for version in dict.fromkeys(source.version for source, _ in made.dropped if source is not None):
        if version not in kept:
            lines.append(f"! {version}: no delta pays; {_reason(made, version)}")
    lines += [f"! {one.version} has no delta, {one.reason}: {one.devices} devices" for one in missing]
    return lines or ["No delta was made."]


def _reason(made: Made, version: str) -> str:
    tried = [trial for source, trial in made.dropped if source is not None and source.version == version]
    good = [trial for trial in tried if trial.problem is None]
    if good:
        best = min(good, key=lambda trial: trial.length_bytes)
        return f"the best is {size(best.length_bytes)} ({best.method}), whole it is {size(made.whole_bytes)}"
    return "; ".join(f"{trial.method}: {trial.problem}" for trial in tried)


@contextmanager
def _progress(
    precursors: list[Precursor], methods: tuple[str, ...]
) -> Iterator[Callable[[Precursor | None, Trial], None]]:
    """Show bars on a terminal, lines elsewhere (stderr: the result is on stdout)."""
    if not sys.stderr.isatty() or output().as_json:
        yield lambda source, trial: output().note(_line(source, trial))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from firmament.payload.methods import METHODS

    count = len(methods) or sum(method.is_delta and method.is_available() for method in METHODS.values())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[best]}"), console=Console(stderr=True), transient=True) as bars:
        tasks = {source.version: bars.add_task(source.version, total=count, best="") for source in precursors}
        tasks[WHOLE] = bars.add_task(WHOLE, total=1, best="")
        best: dict[str, int] = {}

        def tell(source: Precursor | None, trial: Trial) -> None:
            label = source.version if source is not None else WHOLE
            if trial.problem is None:
                best[label] = min(best.get(label, trial.length_bytes), trial.length_bytes)
            bars.update(tasks[label], advance=1, best=size(best[label]) if label in best else "")

        yield tell


def _line(source: Precursor | None, trial: Trial) -> str:
    label = source.version if source is not None else WHOLE
    if trial.problem is not None:
        return f"{label}  {trial.method}  {trial.problem}"
    return f"{label}  {trial.method}  {size(trial.length_bytes)}  made in {trial.encode_cpu_s:.1f} s of CPU"
