"""An interpreter that has what a device has: the standard library and the base dependencies, nothing of an extra."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
BASE = {"firmament"} | {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
COMPANIONS = {"_cffi_backend", "cffi", "pycparser"}  # what cryptography brings along

# tuf loads what it finds installed, e.g. the library for tokens, which would be counted as the device's.
CODE = f"""
import sys

class BaseInstall:
    allowed = {sorted(BASE | COMPANIONS)} + [*sys.stdlib_module_names]
    finders = tuple(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed and not name.startswith("_"):
            return None
        return next(filter(None, (finder.find_spec(name, path, target) for finder in self.finders)), None)

sys.meta_path[:] = [BaseInstall()]
"""
