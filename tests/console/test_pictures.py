"""10. Every picture in the documentation is made by a script from a real run, and every one that is made is shown."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))


def shown():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return {name for page in pages for name in re.findall(r"pictures/([\w.-]+\.(?:png|svg))", page.read_text())}


def test_10_pictures_are_made_by_scripts():
    import console_pictures

    made = {row[0] for row in console_pictures.PICTURES}
    scripts = (
        "".join(path.read_text() for path in (ROOT / "scripts").glob("*.py"))
        + (ROOT / "tests/e2e/test_demo.py").read_text()
    )
    assert made <= shown()
    for name in shown():
        assert (ROOT / "docs/pictures" / name).is_file(), name
        assert name in scripts or name.removesuffix(".svg") in scripts, name
