"""Every place that raises one of our errors says a sentence, and keeps the cause (house rule 4)."""

import ast
from pathlib import Path

import pytest

import firmament
from firmament.errors import error_classes

SOURCE = Path(firmament.__file__).parent
NAMES = {cls.__name__ for cls in error_classes()}


def raised(source):
    """(where, call) for each ``SomeError(...)`` of our tree that is built anywhere in the source."""
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in NAMES:
                    yield f"{path.relative_to(source)}:{node.lineno}", node


def problem(call):
    """The literal text of the problem; `{}` stands for what is filled in. None if it is not a literal."""
    first = call.args[0]
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        return first.value
    if isinstance(first, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in first.values)
    return None


def findings(source):
    found = []
    for where, call in raised(source):
        if len(call.args) != 1:
            found.append(f"{where}: one problem, then facts by name")
            continue
        text = problem(call)
        if text is None:
            continue
        if text.rstrip() != text or text.endswith((".", "!", ":", ",")):
            found.append(f"{where}: the problem ends without punctuation, str() adds it: {text!r}")
        first = text.partition(" ")[0]  # a setting's or a field's name keeps its small letters
        if not (text[:1].isupper() or set("_.{`-[") & set(first)):
            found.append(f"{where}: the problem begins with a capital or a name: {text!r}")
        if ". " in text:
            found.append(f"{where}: one clause; the hint of the class says what to do: {text!r}")
        if "\n" in text or "  " in text:
            found.append(f"{where}: one line: {text!r}")
    return found


def test_every_problem_is_one_clause():
    assert findings(SOURCE) == []


def test_many_places_raise():
    assert sum(1 for _ in raised(SOURCE)) > 20


@pytest.mark.parametrize(
    "line",
    [
        'FileError("Ends here.")',
        'FileError("small letter")',
        'FileError("Two. Sentences")',
        'FileError("Two", "arguments")',
        "FileError()",
        'errors.FileError("Ends here.")',
        'FileError(f"Ends {x}.")',
    ],
)
def test_the_rule_finds_what_it_should(tmp_path, line):
    (tmp_path / "bad.py").write_text(f"x = {line}\n")
    assert len(findings(tmp_path)) == 1


@pytest.mark.parametrize("line", ['FileError(f"{what} is gone", path=path)', "FileError(problem, **facts)"])
def test_the_rule_leaves_good_ones_alone(tmp_path, line):
    (tmp_path / "good.py").write_text(f"x = {line}\n")
    assert findings(tmp_path) == []
