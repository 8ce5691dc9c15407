"""Make one payload with a method of this project: ours.py METHOD OLD NEW PAYLOAD"""

import sys
from pathlib import Path

from firmament.payload.methods import METHODS

name, old, new, out = sys.argv[1:]
Path(out).write_bytes(METHODS[name].encode(Path(old).read_bytes(), Path(new).read_bytes()))
