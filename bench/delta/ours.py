"""Make one payload with a method of this project: ours.py METHOD OLD NEW PAYLOAD"""

import sys
from pathlib import Path

from firmament.payload.methods import METHODS

name, old, new, out = sys.argv[1:]
before, after, method = Path(old).read_bytes(), Path(new).read_bytes(), METHODS[name]
if not method.pays(before, after):
    sys.exit("nothing in these images that this method is for")
Path(out).write_bytes(method.encode(before, after))
