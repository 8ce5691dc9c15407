"""An import may only go down, to a strictly smaller floor (house.md 2.1)."""

import ast
import sys
from pathlib import Path

import firmament

SOURCE = Path(firmament.__file__).parent
FLOOR = {
    "errors": 0,
    "core": 1,
    "durable": 1,
    "log": 1,
    "protocol": 2,  # messages as values; below trust, which signs and verifies them
    "trust": 3,
    "payload": 3,
    "release": 4,
    "server": 4,
    "agent": 4,
    "gateway": 4,
    "console": 5,
    "sim": 5,
    "cli": 6,
}
TUF = {"tuf", "securesystemslib", "cryptography"}
THIRD_PARTY = {  # the only packages outside the standard library that a floor may import
    "errors": set(),
    "core": set(),
    "durable": set(),
    "log": set(),
    "protocol": set(),
    "trust": TUF | {"pkcs11"},
    "payload": {
        "cryptography",
        "numpy",
        "hdiffpatch",
        "zstandard",
        "bsdiff4",
        "detools",
    },  # all but the first: encoder or optional
    "agent": TUF | {"urllib3"},
    "release": TUF | {"urllib3"},
}


def imports(tree: ast.AST) -> set[str]:
    """``.part`` for a part of the house, else the top-level name of a foreign package."""
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            found.add(f".{rest.partition('.')[0]}" if head == "firmament" else head)
    return found


def violations(source: Path) -> list[str]:
    bad = []
    for path in sorted(source.rglob("*.py")):
        here = path.relative_to(source).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for name in sorted(imports(ast.parse(path.read_text()))):
            there = name[1:]
            if name in {".", ".__version__"}:
                continue
            if name.startswith("."):
                if there != here and not FLOOR[there] < FLOOR[here]:
                    bad.append(
                        f"{path.relative_to(source)}: {here} (floor {FLOOR[here]}) may not import {there} (floor {FLOOR[there]})"
                    )
            elif here in THIRD_PARTY and name not in sys.stdlib_module_names and name not in THIRD_PARTY[here]:
                bad.append(f"{path.relative_to(source)}: {here} may not import {name}")
    return bad


def test_imports_only_go_down():
    assert violations(SOURCE) == []


def test_the_rule_finds_what_it_should(tmp_path):
    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    put("agent/machine.py", "from firmament.core import digest\n")
    put("agent/bad.py", "from firmament.server import app\nimport httpx\n")
    put("server/app.py", "import httpx\nfrom firmament.protocol.v1 import messages\n")
    put("core/worse.py", "def f():\n    from firmament import trust\n")
    assert [line.split(": ", 1)[1] for line in violations(tmp_path)] == [
        "agent (floor 4) may not import server (floor 4)",
        "agent may not import httpx",
        "core (floor 1) may not import trust (floor 3)",
    ]


def test_every_part_has_a_floor():
    parts = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if not path.name.startswith("_")} - {"py.typed"}
    assert parts <= set(FLOOR)
