"""Write the generated reference pages and the generated blocks inside hand-written pages (`make docs`).

A block stands between ``<!-- begin generated NAME -->`` and ``<!-- end generated -->``. With
``--check`` nothing is written, and the exit code is 1 if anything would change; a test does the same.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import os
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.core.manifest import MAX_IMAGE_LENGTH_BYTES, MAX_MANIFEST_LENGTH_BYTES
from firmament.errors import FirmamentError, error_classes
from firmament.protocol.status import AttemptStatus, ConsentAnswer, Outcome
from firmament.protocol.v1 import messages, paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = ROOT / "docs"
MAN: Final = DOCS / "man"
WIDTH: Final = 100
EXIT_USAGE: Final = 2
GENERATED: Final = "<!-- Written by `make docs`. Change the code, not this page. -->\n"
BLOCK: Final = re.compile(r"(<!-- begin generated ([a-z-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def module(name: str) -> ModuleType | None:
    """Import a module that an extra or a later release may bring."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# --- errors --------------------------------------------------------------------------------


def branch_texts() -> dict[str, str]:
    """Read what each branch means from the drawing at the head of errors.py."""
    doc = sys.modules["firmament.errors"].__doc__ or ""
    return dict(re.findall(r"^ *x \w+ +([a-z]+) +(\S.*)$", doc, re.MULTILINE))


def errors_page() -> str:
    texts = branch_texts()
    parts = [
        GENERATED,
        "# Errors\n\n",
        "Every error has a code. It is printed by both commands (`code: trust/rollback`), sent as `type` of\n",
        "`application/problem+json` by the server and as `code` in a device's report. Codes are nested: who does not\n",
        "know `trust/rollback` treats it as `trust`. A code may be added; it is never renamed or reused.\n\n",
        "*Retry* says what asking again would do: `never` the same answer comes back; `later` back off and try the\n",
        "same thing again; `after-refresh` fetch fresh metadata first.\n\n",
        "## Exit codes\n\n",
        "The same in `firmament` and `firmament-agent`.\n\n",
        table(
            ["exit", "meaning"],
            [
                ["0", "done"],
                ["1", "failed in a way that has no code of its own"],
                ["2", "usage: the command line could not be understood"],
                ["3", "what was watched or planned ended badly: a rollout halted, a plan is blocked"],
                ["6", "timed out waiting for it"],
                *[
                    [str(cls.exit_code), f"`{cls.code}`"]
                    for cls in sorted(error_classes(), key=lambda cls: cls.exit_code)
                    if EXIT_USAGE < cls.exit_code < error_classes()[1].exit_code
                ],
                *[
                    [f"{cls.exit_code}-{_last_exit_code(cls)}", f"`{cls.code}`: {texts[cls.code]}"]
                    for cls in FirmamentError.__subclasses__()
                ],
                ["130", "interrupted with Ctrl-C"],
            ],
        ),
    ]
    for branch in FirmamentError.__subclasses__():
        parts.append(f"\n## {branch.code}: {texts[branch.code]}\n\n")
        parts.append(
            table(
                ["code", "exit", "HTTP", "retry", "what to do"],
                [
                    [f"`{cls.code}`", str(cls.exit_code), str(cls.http_status), cls.retry.value, cls.hint]
                    for cls in [branch, *(c for c in error_classes() if issubclass(c, branch) and c is not branch)]
                ],
            )
        )
    return "".join(parts)


def _last_exit_code(branch: type[FirmamentError]) -> int:
    return branch.exit_code + 19 if branch.code == "trust" else branch.exit_code + 9


# --- command line --------------------------------------------------------------------------


def programs() -> Iterator[tuple[str, click.Command]]:
    for name, place in (("firmament", "firmament.cli.main"), ("firmament-agent", "firmament.cli.agent")):
        found = module(place)
        if found is not None:
            yield name, found.program


def commands(
    name: str, command: click.Command, parent: click.Context | None = None
) -> Iterator[tuple[str, click.Context]]:
    """Yield every command below, depth first, with a context that formats its help."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    context.help_option_names = ["-h", "--help"]
    command._help_option = None  # noqa: SLF001 - click keeps it from whoever asked first, with other names
    yield context.command_path, context
    if isinstance(command, click.Group):
        for sub_name in command.list_commands(context):
            try:
                sub = command.get_command(context, sub_name)
            except FirmamentError:
                continue  # an extra that is not installed here
            if sub is not None and not sub.hidden:
                yield from commands(sub_name, sub, context)


def cli_tree() -> dict[str, dict[str, str]]:
    """Every command with its options and what it demands, for the snapshot of published names."""
    found = {}
    for name, program in programs():
        for path, context in commands(name, program):
            parameters = context.command.params
            options = [option for each in parameters for option in (*each.opts, *each.secondary_opts)]
            demands = [each.human_readable_name for each in parameters if each.required]
            found[path] = {option: "option" for option in sorted(options) if option.startswith("-")} | {
                "demands": " ".join(demands)
            }
    return found


def cli_page() -> str:
    parts = [
        GENERATED,
        "# Commands\n\n",
        "Standard output is data, standard error is for people. `--json` prints one document with a `schema`;\n",
        "`-v` shows the chain of causes of an error; `--no-input` never asks. Exit codes are in\n",
        "[errors](errors.md#exit-codes). A command shows its help with `--help` or `-h`; the same text is its manual\n",
        "page, which the wheel installs (`man firmament-release-publish`).\n",
    ]
    for name, program in programs():
        parts.append(f"\n## {name}\n")
        for path, context in commands(name, program):
            if path != name:
                parts.append(f"\n### {path}\n")
            text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
            parts.append(f"\n```text\n{text}\n```\n")
    schemas = module("firmament.cli.schemas")
    if schemas is not None:
        parts += [
            "\n## JSON documents\n\n",
            'What `--json` prints is one document, `{"schema": "firmament.<name>/1", ...}`, with at least these\n',
            "fields; its JSON Schema (draft 2020-12) says the rest. Fields are added, never dropped or renamed;\n",
            "a change that cannot be one of these gets the next number.\n",
            "Errors are `firmament.error/1` on standard error, one line; a command line that could not be\n",
            "understood has the code `usage`.\n\n",
            table(
                ["schema", "fields it always has"],
                [
                    [
                        f"[`firmament.{name}/{schemas.VERSION}`](json/{name}-{schemas.VERSION}.json)",
                        " ".join(f"`{field}`" for field in row.split()),
                    ]
                    for name, row in sorted(schemas.SCHEMAS.items())
                ],
            ),
        ]
    return "".join(parts)


# --- settings ------------------------------------------------------------------------------


def settings_page() -> str:
    parts = [GENERATED, "# Settings\n\n", "An unknown name is refused: a setting that is misspelt is never ignored.\n"]
    server = module("firmament.server.settings")
    if server is not None:
        parts += [
            "\n## Server: section `[server]` of `firmament.toml`\n\n",
            "Each has an environment twin, which wins over the file: `port` is ",
            f"`{server.ENVIRONMENT_PREFIX}PORT`.\n\n",
            table(
                ["setting", "default", "meaning"],
                [
                    [f"`{field.name}`", f"`{_toml(field.default)}`", _with_minimum(field)]
                    for field in dataclasses.fields(server.ServerSettings)
                ],
            ),
        ]
    agent = module("firmament.agent.settings")
    table_of = getattr(agent, "settings_table", None)
    if table_of is not None:
        parts += [
            "\n## Agent: `agent.toml`\n\n",
            "Read from `--config`, else from the file that `FIRMAMENT_AGENT_CONFIG` names, else from ",
            "`/etc/firmament/agent.toml`.\n",
        ]
        section = None
        for row in table_of():
            if row.section != section:
                section = row.section
                parts.append(f"\n### {section or 'top level'}\n\n" + table(["setting", "default", "meaning"], []))
            parts.append(f"| `{row.name}` | {row.default} | {row.description} |\n")
    return "".join(parts)


def _with_minimum(field: dataclasses.Field[Any]) -> str:
    text = str(field.metadata["description"])
    minimum = field.metadata.get("minimum")
    return text if minimum is None else f"{text} At least {minimum}."


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


# --- events --------------------------------------------------------------------------------


def words_of(kind: type[StrEnum]) -> list[list[str]]:
    """Each member with the docstring below it, if there is one."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    last = ""
    for node in body.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            last = node.targets[0].id
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts[last] = " ".join(str(node.value.value).split())
            last = ""
        else:
            last = ""
    return [[f"`{member.value}`", texts.get(member.name, "")] for member in kind]


def events_page() -> str:
    parts = [
        GENERATED,
        "# Words: states, outcomes and events\n\n",
        "The journal, the wire, the database, the console and the command line spell them alike.\n",
        "\n## Where an attempt is\n\n",
        table(["status", "meaning"], words_of(AttemptStatus)),
        "\n## How it ended\n\n" + ", ".join(f"`{outcome.value}`" for outcome in Outcome) + ".\n",
        "\n## What an owner says\n\n",
        "In [consent events](../protocol/consent.md).\n\n",
        table(["answer", "meaning"], words_of(ConsentAnswer)),
    ]
    machine = module("firmament.agent.machine")
    if machine is not None:
        parts += ["\n## What moves the install machine\n\n", table(["event", "meaning"], words_of(machine.Event))]
    agent_events = module("firmament.agent.events")
    for name, kind in sorted(vars(agent_events or object).items()) if agent_events else []:
        if inspect.isclass(kind) and issubclass(kind, StrEnum) and kind.__module__ == agent_events.__name__:
            parts += [
                f"\n## What the agent tells its sinks and hooks: {name}\n\n",
                table(["event", "meaning"], words_of(kind)),
            ]
    server = module("firmament.server.events")
    if server is not None:
        parts += [
            "\n## What the server writes down for ever\n\n",
            "`subject.past-participle`, append-only, in the same transaction as the change.\n\n",
            ", ".join(f"`{event.value}`" for event in server.Event) + ".\n",
        ]
    return "".join(parts)


# --- operator API --------------------------------------------------------------------------


def openapi() -> dict[str, Any]:
    """Return the description that the server gives at /openapi.json; empty without the extra."""
    api, base = module("firmament.server.http.operator_api"), module("firmament.server.http.operator_base")
    fastapi = module("fastapi")
    if api is None or base is None or fastapi is None:
        return {}
    app = fastapi.FastAPI(responses=base.REFUSALS)
    api.OperatorApi(None, app.router)
    described: dict[str, Any] = app.openapi()
    return described


def operations() -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Yield each operation's name, itself, the schema of its body and of its answer."""
    described = openapi()
    for path, methods in described.get("paths", {}).items():
        for method, operation in methods.items():
            body = _schema(described, operation.get("requestBody", {}))
            good = next((answer for code, answer in operation["responses"].items() if code.startswith("2")), {})
            yield f"{method.upper()} {path}", operation, body, _schema(described, good)


def _schema(described: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    schema = part.get("content", {}).get("application/json", {}).get("schema", {})
    while "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return dict(schema)


def operator_api() -> dict[str, dict[str, str]]:
    """Every operation with its fields, for the snapshot of published names."""
    found = {}
    for name, operation, body, answer in operations():
        fields = {f"body {field}": "field" for field in body.get("properties", {})}
        fields |= {f"answer {field}": "field" for field in answer.get("properties", {})}
        fields |= {f"query {each['name']}": each["in"] for each in operation.get("parameters", [])}
        demands = [each["name"] for each in operation.get("parameters", []) if each.get("required")]
        found[name] = fields | {"demands": " ".join([*demands, *body.get("required", [])])}
    return found


def operator_api_page() -> str:
    rows = []
    for name, operation, body, answer in operations():
        required = set(body.get("required", []))
        takes = [f"`{field}`" if field in required else f"[`{field}`]" for field in body.get("properties", {})]
        takes += [f"?`{each['name']}`" for each in operation.get("parameters", []) if each["in"] == "query"]
        gives = [f"`{field}`" for field in answer.get("properties", {})]
        rows.append([f"`{name}`", operation.get("summary", ""), " ".join(takes), " ".join(gives)])
    return (
        f"{GENERATED}# Operator API\n\n"
        "JSON over HTTPS with a bearer token (`firmament operator token`). Errors are `application/problem+json`, see\n"
        "[errors](errors.md). The server describes itself at `/openapi.json`. Fields in brackets may be left out,\n"
        "those with a question mark are in the query.\n\n"
        "A change may carry `Idempotency-Key`, 1 to 128 visible characters of the caller's choice. Sent again with\n"
        "the same key within 24 hours, by the same caller, it is done once: the first answer comes again with\n"
        "`Idempotency-Replayed: true`. Another request under the key is refused (409, `repeat/key-reused`); while the\n"
        "first is being done, `repeat/busy` says when to ask again. A refusal uses no key up. When the server stopped\n"
        "between the change and its answer, `repeat/answer-lost` says that it was done. Payload bytes\n"
        "(`PUT /api/v1/blobs/...`) are named by their digest and take no key; publishing names its versions, so a\n"
        "second one that is no repetition is refused by itself. `firmament` sends a key of its own with every change,\n"
        "and sends it up to four times when the answer does not arrive.\n\n"
        + table(["operation", "what", "takes", "gives"], rows)
    )


# --- blocks inside hand-written pages ------------------------------------------------------


def machine_block() -> str:
    machine = module("firmament.agent.machine")
    return f"```mermaid\n{machine.diagram()}```\n" if machine else ""


def resume_block() -> str:
    machine = module("firmament.agent.machine")
    if machine is None:
        return ""
    return table(
        ["journal says", "what is true, and what is done"], [[f"`{s}`", t] for s, t in machine.RESUME_AT.items()]
    )


def verification_block() -> str:
    """Take the numbered steps from the head of the code that walks them."""
    walk = module("firmament.trust.walk")
    text = inspect.cleandoc(walk.__doc__ or "") if walk else ""
    start = text.find("The director, one answer")
    return re.sub(r"^(The .*):$", r"### \1", text[start:].replace("``", "`"), flags=re.MULTILINE) + "\n"


def paths_block() -> str:
    source = ast.parse(Path(paths.__file__).read_text()).body
    rows = []
    for node, following in itertools.pairwise(source):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(node.value, ast.Constant)
            assert isinstance(following.value, ast.Constant)
            rows.append([f"`{node.value.value}`", " ".join(str(following.value.value).split())])
    return table(["path", "what"], rows)


def limits_block() -> str:
    shown = {
        "a request body": messages.MAX_REQUEST_LENGTH_BYTES,
        "a poll reply": messages.MAX_POLL_REPLY_LENGTH_BYTES,
        "a manifest": MAX_MANIFEST_LENGTH_BYTES,
        "an image": MAX_IMAGE_LENGTH_BYTES,
    }
    rows = [[name, f"{value:,} bytes".replace(",", " ")] for name, value in shown.items()]
    rows += [
        ["reports in one batch", str(messages.MAX_REPORTS)],
        ["consent events in one batch", str(messages.MAX_CONSENT_EVENTS)],
        ["inventory attributes", str(messages.MAX_ATTRIBUTES)],
    ]
    return table(["of", "ceiling"], rows)


def cases_block() -> str:
    """Join the attack cases of docs/security/cases.txt with the tests that play each."""
    return attack_table(DOCS / "security/cases.txt", ROOT / "tests")


def attack_table(cases: Path, tests: Path) -> str:
    stories = dict(re.findall(r"^(\d+) \| (.+)$", cases.read_text(), re.MULTILINE))
    places: dict[str, set[str]] = {number: set() for number in stories}
    for path in sorted(tests.rglob("test_*.py")):
        if path.parent.name == "architecture":
            continue  # they speak about this table
        for number in numbers_of_cases(without_head(path.read_text())):
            if number in places:
                places[number].add(str(path.relative_to(tests)))
    rows = []
    for number, story in stories.items():
        attacker, ending, *also = story.split(" | ")
        played = sorted(places[number].union(*(each.split() for each in also)))
        rows.append([number, attacker, ending, " ".join(f"`{place}`" for place in played) or "not yet"])
    return table(["case", "the attacker", "the ending", "played in tests/"], rows)


def without_head(text: str) -> str:
    """Cut the docstring of the module: what it announces is not yet played."""
    body = ast.parse(text).body
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        return "".join(text.splitlines(keepends=True)[body[0].end_lineno :])
    return text


def numbers_of_cases(text: str) -> set[str]:
    """``test_25_...``, ``test_07_08_...``, ``case 25``, ``cases 24, 25 and 27`` anywhere in a test."""
    found = {
        str(int(number)) for name in re.findall(r"def test_((?:\d\d_)+)", text) for number in name.split("_") if number
    }
    for match in re.finditer(r"\bcases? ?=? ?((?:\d+(?:, | and |-| to )?)+)", text, re.IGNORECASE):
        numbers = match.group(1)
        found.update(re.findall(r"\d+", numbers))
        for low, high in re.findall(r"(\d+)(?:-| to )(\d+)", numbers):
            found.update(str(number) for number in range(int(low), min(int(high), int(low) + 70) + 1))
    return found


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "install-machine": machine_block,
    "resume-rules": resume_block,
    "verification-steps": verification_block,
    "device-paths": paths_block,
    "limits": limits_block,
    "attack-cases": cases_block,
}
PAGES: Final[dict[str, Callable[[], str]]] = {
    "reference/errors.md": errors_page,
    "reference/cli.md": cli_page,
    "reference/settings.md": settings_page,
    "reference/events.md": events_page,
    "reference/operator-api.md": operator_api_page,
}


def manual_pages() -> dict[Path, str]:
    """Return the manual page of every command of both programs; the wheel installs them in share/man/man1."""
    manual = importlib.import_module("firmament.cli.manual")
    return {MAN / f"{title}.1": text for name, program in programs() for title, text in manual.pages(program, name)}


def completions() -> str:
    """Return the table that cli/complete.py answers a shell from."""
    lines = []
    for name, program in programs():
        for path, context in commands(name, program):
            command = context.command
            for param in command.get_params(context):
                many = "many" if param.nargs == -1 or getattr(param, "multiple", False) else str(param.nargs)
                if isinstance(param, click.Option):
                    if not param.hidden:
                        kind = "flag" if param.is_flag or param.count else _kind(param)
                        names = ",".join([*param.opts, *param.secondary_opts])
                        lines.append((path, "O", names, kind, many, " ".join((param.help or "").split())))
                else:
                    lines.append((path, "A", _kind(param), many))
            if isinstance(command, click.Group):
                summaries = {entry: found.summary for entry, found in getattr(command, "lazy", {}).items()}
                for entry in command.list_commands(context):
                    sub = command.get_command(context, entry)
                    if sub is not None and not sub.hidden:
                        lines.append((path, "C", entry, summaries.get(entry) or sub.get_short_help_str()))
    return "".join("\t".join(line) + "\n" for line in lines)


def _kind(param: click.Parameter) -> str:
    """Say what stands for a value: a file, a directory, one of several words, or anything."""
    if isinstance(param.type, click.Choice):
        return "=" + "|".join(str(choice) for choice in param.type.choices)
    if isinstance(param.type, click.Path):
        return "dir" if param.type.dir_okay and not param.type.file_okay else "file"
    return "file" if isinstance(param.type, click.File) else "any"


def build() -> dict[Path, str]:
    """Return every page that holds generated text, as it should be."""
    made = {DOCS / name: page() for name, page in PAGES.items()} | manual_pages()
    made[ROOT / "src/firmament/cli/completions.txt"] = completions()
    for path in sorted({*DOCS.rglob("*.md"), *ROOT.glob("*.md")} - set(made)):
        text = path.read_text()
        if BLOCK.search(text):
            made[path] = BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}", text)
    return made


def main() -> int:
    # What a person has set up on this machine must not show in the pages.
    for name in [name for name in os.environ if name.startswith("FIRMAMENT_")]:
        del os.environ[name]
    is_check = "--check" in sys.argv[1:]
    changed = []
    for path, text in build().items():
        if not path.exists() or path.read_text() != text:
            changed.append(path)
            if not is_check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    for path in sorted(set(MAN.glob("*.1")) - set(manual_pages())):
        changed.append(path)
        if not is_check:
            path.unlink()  # of a command that is no more
    for path in changed:
        print(f"{'differs' if is_check else 'wrote'} {path.relative_to(ROOT)}")
    if not is_check:
        return subprocess.run([sys.executable, ROOT / "tests/contract/test_wire_names.py"], check=False).returncode
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
