"""Apply one payload in a process of its own and say what it took, as JSON: CPU seconds and peak memory.

    python bench/delta/apply.py METHOD OLD PAYLOAD OUT IMAGE_LENGTH [seal]

With `seal` the payload is sealed first, by a process of its own, and applied straight from the container.
"""

import json
import resource
import sys
from pathlib import Path


def peak_kib():
    """Peak resident set of this program; ru_maxrss would count what its parent had before it was replaced."""
    return next(
        int(row.split()[1]) for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM")
    )


BARE_KIB = peak_kib()  # before anything of ours is imported

from firmament.payload.methods import METHODS, Job  # noqa: E402
from firmament.payload.readers import FileReader  # noqa: E402

IMPORTED_KIB = peak_kib()


def main() -> None:
    method, old, payload, out, length = sys.argv[1:6]
    precursor, source = FileReader(Path(old)), FileReader(Path(payload))
    plain = source
    if sys.argv[6:] == ["seal"]:
        from firmament.payload.sealed import Opener

        plain = Opener(source, source.length_bytes, bytes(32), max_plain_length_bytes=source.length_bytes)
    job = Job(plain, plain.length_bytes, int(length), precursor, precursor.length_bytes)
    with Path(out).open("wb") as sink:
        for offset, piece in METHODS[method].apply(job):
            sink.seek(offset)
            sink.write(piece)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime
    print(json.dumps({"cpu_s": cpu_s, "peak_kib": peak_kib(), "bare_kib": BARE_KIB, "imported_kib": IMPORTED_KIB}))


main()
