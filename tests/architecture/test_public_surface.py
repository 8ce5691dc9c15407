"""The public Python API: names in `__all__` of four packages; they exist, are lazy, and are pinned."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import firmament

PUBLIC = ("firmament.agent", "firmament.protocol", "firmament.release", "firmament.trust")
ROOT = Path(firmament.__file__).parent


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists(name):
    package = importlib.import_module(name)
    assert isinstance(package.__all__, tuple)
    assert list(package.__all__) == sorted(package.__all__)
    assert len(package.__all__) >= 5
    for each in package.__all__:
        found = getattr(package, each)
        assert found.__doc__, f"{name}.{each} says what it is for"
        importlib.import_module(name)
        assert getattr(package, each) is found, "the same before and after its module was imported"


@pytest.mark.parametrize("name", PUBLIC)
def test_unknown_names_are_refused_as_python_does(name):
    package = importlib.import_module(name)
    with pytest.raises(AttributeError, match=rf"module '{name}' has no attribute 'no_such_thing'"):
        package.no_such_thing  # noqa: B018 - asking is the test


@pytest.mark.parametrize("name", PUBLIC)
def test_importing_a_public_package_imports_nothing_else(name):
    code = f"import sys, {name}; print(sorted(m for m in sys.modules if m.startswith(('firmament.', 'tuf', 'cryptography', 'urllib3'))))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == str([name])


def test_type_checkers_see_the_same_names():
    for name in PUBLIC:
        text = (ROOT / name.partition(".")[2] / "__init__.py").read_text()
        block = text.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
        for each in importlib.import_module(name).__all__:
            assert each in block, f"{name}.{each}"


def test_every_package_says_what_it_is():
    for path in ROOT.rglob("__init__.py"):
        text = importlib.import_module(".".join(path.relative_to(ROOT.parent).parent.parts)).__doc__
        assert text, path
        assert "TODO" not in text, path
        assert text.splitlines()[0].endswith("."), path
