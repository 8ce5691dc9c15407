"""Run one Python library of the comparison.

library.py NAME encode OLD NEW PAYLOAD
library.py NAME apply OLD PAYLOAD OUT
"""

import importlib
import sys
from pathlib import Path


def main() -> None:
    name, action, *paths = sys.argv[1:]
    first, second, third = (Path(path) for path in paths)
    library, _, variant = name.partition("-")
    if library == "hdiffpatch":
        hdiffpatch = importlib.import_module("hdiffpatch")
        if action == "encode":
            codec = getattr(hdiffpatch, f"COMPRESSION_{variant.upper()}")
            third.write_bytes(
                hdiffpatch.diff(first.read_bytes(), second.read_bytes(), compression=codec, validate=False)
            )
        else:
            third.write_bytes(hdiffpatch.apply(first.read_bytes(), second.read_bytes()))
    elif action == "encode":
        detools = importlib.import_module("detools")
        settings = {"compression": "lzma"}
        if variant == "hdiffpatch":
            settings |= {"algorithm": "hdiffpatch", "patch_type": "hdiffpatch"}
        elif variant != "bsdiff":  # a data format; a microcontroller image is taken as code at its address
            settings["data_format"] = variant
            if variant == "arm-cortex-m4":
                for side, path in (("from", first), ("to", second)):
                    settings |= {f"{side}_code_begin": 0x08010000, f"{side}_code_end": 0x08010000 + path.stat().st_size}
                    settings |= {f"{side}_data_offset_begin": 0, f"{side}_data_offset_end": 0}
                    settings |= {f"{side}_data_begin": 0, f"{side}_data_end": 0}
        with first.open("rb") as old, second.open("rb") as new, third.open("wb") as out:
            detools.create_patch(old, new, out, **settings)
    else:
        importlib.import_module("detools").apply_patch_filenames(str(first), str(second), str(third))


main()
