"""Every measurement of `make bench`, one after the other; each prints ratios and its bar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MEASUREMENTS = ("poll.py",)


def main() -> int:
    here = Path(__file__).parent
    codes = [subprocess.run([sys.executable, here / name], check=False).returncode for name in MEASUREMENTS]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
