"""``completion`` and ``man`` of both commands: what a shell and a pager need, made from the commands themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from firmament.cli.common import output, output_options

SHELLS = ("bash", "zsh", "fish")
PLACES = {
    "bash": "~/.local/share/bash-completion/completions/{name}",
    "zsh": "~/.zfunc/_{name}   (and `fpath+=~/.zfunc` before compinit in ~/.zshrc)",
    "fish": "~/.config/fish/completions/{name}.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@output_options
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes this command in SHELL."""
    from click.shell_completion import get_completion_class

    root = context.find_root()
    name = str(root.info_name)
    made = get_completion_class(shell)
    assert made is not None
    # bash's source() asks bash for its version; the script itself needs nothing of the kind.
    script = made.source_template % made(root.command, {}, name, variable(name)).source_vars()
    out = output()
    out.document("completion", {"shell": shell, "script": script}, lines=[script])
    out.next_command(f"{name} completion {shell} > {PLACES[shell].format(name=name)}")


def variable(name: str) -> str:
    """Return the environment variable by which click asks for completions."""
    return f"_{name.replace('-', '_').upper()}_COMPLETE"


@click.command("man")
@click.argument("command", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the page of every command here, e.g. ~/.local/share/man/man1.",
)
@output_options
@click.pass_context
def man(context: click.Context, command: tuple[str, ...], out: Path | None) -> None:
    """Print the manual page of COMMAND, for `man -l -`, or write all of them."""
    from firmament.cli.manual import page, pages

    root = context.find_root()
    name, say = str(root.info_name), output()
    if out is None:
        text = page(root.command, name, command)
        say.document("manual", {"pages": {"-".join((name, *command)): text}}, lines=[text])
        return
    found: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    for title, text in pages(root.command, name):
        path = out / f"{title}.1"
        path.write_text(text)
        found[title] = str(path)
    say.document("manual", {"pages": found}, lines=[f"Wrote {len(found)} pages to {out}."])
    say.next_command(f"man {name}")
