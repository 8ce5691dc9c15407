"""Measure one method on one pair; results are kept with a key that any change of what made them changes.

    python bench/delta/measure.py ...   is not run by hand: run.py does

A result is used again only while the key is the same: the digests of both images; for a tool its definition
(tools.py, library.py) and its version; for ours the code of every module of this project that making, sealing or
applying loads, and the versions of the libraries under it.
"""

import filecmp
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

from tools import CHUNKS, HERE, LIBRARIES, PACKAGES, PYTHON, TOOLS

OURS = ("refdelta/1", "refdelta/2")
_SEAL = (
    "import sys; from pathlib import Path; from firmament.payload.readers import FileReader; "
    "from firmament.payload.sealed import seal; s = FileReader(Path(sys.argv[1])); "
    "f = open(sys.argv[2], 'wb'); seal(s, s.length_bytes, bytes(32), f.write); f.close()"
)
_LOADED = (
    "import sys, pkgutil, importlib, firmament.payload as p\n"
    "for m in pkgutil.walk_packages(p.__path__, 'firmament.payload.'): importlib.import_module(m.name)\n"
    "print(*sorted(m.__file__ for n, m in sys.modules.items() if n.startswith('firmament') and m.__file__), sep='\\n')"
)


def digest(*parts):
    found = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else json.dumps(part, sort_keys=True).encode()
        found.update(hashlib.sha256(data).digest())
    return found.hexdigest()


@cache
def image_digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def versions(*libraries):
    return {name: importlib.metadata.version(name) for name in libraries} | {"python": platform.python_version()}


@cache
def code_of_ours():
    """Digest of every module of this project that is loaded with any module of firmament.payload."""
    out = subprocess.run([PYTHON, "-c", _LOADED], capture_output=True, text=True, check=True).stdout
    files = [Path(line) for line in out.splitlines()]
    return digest(*files, HERE / "ours.py", HERE / "apply.py", HERE / "measure.py", versions("numpy", "hdiffpatch"))


@cache
def code_of_tools():
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PACKAGES]
    packages = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = [HERE / name for name in ("tools.py", "library.py", "measure.py")]
    return digest(*parts, packages, versions(*LIBRARIES))


def key_of(name, old, new):
    code = code_of_ours() if name in OURS else code_of_tools()
    return digest(name, code, image_digest(old), image_digest(new))


def measured(command):
    """Run; return (CPU seconds, peak MiB, standard output), or None if it failed."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    return None if status else (round(used.ru_utime + used.ru_stime, 2), round(used.ru_maxrss / 1024, 1), out)


def measure(name, old, new, scratch):
    """Make, apply, compare; a failure is a result."""
    if name in OURS:
        return _ours(name, old, new, scratch)
    if name == CHUNKS:
        return _chunks(old, new, scratch)
    encode, apply = TOOLS[name]
    payload, out = scratch / "payload", scratch / "out"
    made = measured(encode(old, new, payload))
    if made is None:
        return {"problem": "failed to make"}
    used = measured(apply(old, payload, out))
    if used is None or not filecmp.cmp(new, out, shallow=False):
        return {"problem": "failed to apply"}
    return {"bytes": payload.stat().st_size, "encode": made[:2], "apply": used[:2]}


def _ours(name, old, new, scratch):
    """Encode, apply plain and sealed; memory above a bare interpreter."""
    payload, sealed, out = scratch / "payload", scratch / "sealed", scratch / "out"
    made = measured([PYTHON, HERE / "ours.py", name, old, new, payload])
    if made is None:
        return {"problem": "nothing to see"} if name == "refdelta/2" else {"problem": "failed to make"}
    found = {"bytes": payload.stat().st_size, "encode": made[:2]}
    subprocess.run([PYTHON, "-c", _SEAL, payload, sealed], check=True)
    for kind, source, more in (("apply", payload, []), ("apply_sealed", sealed, ["seal"])):
        used = measured([PYTHON, HERE / "apply.py", name, old, source, out, new.stat().st_size, *more])
        if used is None or not filecmp.cmp(new, out, shallow=False):
            return {"problem": "failed to apply"}
        facts = json.loads(used[2])
        found[kind] = [used[0], round((facts["peak_kib"] - facts["bare_kib"]) / 1024, 1)]
    return found


def _chunks(old, new, scratch):
    """casync: the compressed chunks of the new image that the old one does not have."""
    store = scratch / "store"
    subprocess.run(["rm", "-rf", store], check=True)
    total = lambda: sum(path.stat().st_size for path in store.rglob("*.cacnk"))  # noqa: E731
    for path in (old, new):
        before = total() if store.exists() else 0
        if measured(["casync", "make", f"--store={store}", scratch / "index.caibx", path]) is None:
            return {"problem": "failed to make"}
    return {"bytes": total() - before + (scratch / "index.caibx").stat().st_size}


if __name__ == "__main__":
    sys.exit(__doc__)
