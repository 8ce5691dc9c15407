"""``make sweep``: run the whole power-cut sweep and print what it found, one line per row.

Not a command of the published tools: it proves the tree it stands in. The last line is fixed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import logging
import multiprocessing
import os
import sys

from firmament.sim.sweep import Tally, all_cases, sweep

MAX_SHOWN = 20
"""Losses printed per row; one defect usually shows at hundreds of cuts."""


def main(argv: list[str] | None = None) -> int:
    """Run it; returns 0 when every cut was survived."""
    parser = argparse.ArgumentParser(prog="python -m firmament.cli.sweep", description=__doc__)
    parser.add_argument("--only", default="", help="only rows whose name contains this text")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes to use")
    parser.add_argument("--every", type=int, default=1, help="only each n-th operation, for a quick look")
    options = parser.parse_args(argv)
    cases = [case for case in all_cases() if options.only in str(case)]
    total = Tally()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context, initializer=_quiet) as pool:
        played = functools.partial(sweep, every=options.every)
        for case, tally in zip(cases, pool.map(played, cases), strict=True):
            total.add(tally)
            print(
                f"{case}: {tally.tried} tried, {tally.played} different, {len(tally.losses)} lost, "
                f"{tally.lost_in_trial} given back in the trial",
                flush=True,
            )
            for loss in tally.losses[:MAX_SHOWN]:
                print(f"  {loss}")
    print(total)
    return 0 if total.is_clean else 1


def _quiet() -> None:
    logging.getLogger("firmament").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
