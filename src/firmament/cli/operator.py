"""``firmament operator``: people and tokens of a firmware server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from firmament.cli.account import COMMANDS
from firmament.cli.common import may_ask, output, output_options, read_secret_file, session_file
from firmament.cli.operator_client import connect, server_address, server_options
from firmament.errors import FirmamentError, PassphraseError, SecondFactorError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ROLES: Final = ("viewer", "operator", "releaser", "approver", "admin")
HOUR_S: Final = 3600


def password_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--password-file``."""
    return click.option(
        "--password-file",
        type=click.Path(path_type=Path),
        envvar="FIRMAMENT_PASSWORD_FILE",
        show_envvar=True,
        help="File (mode 0600) with the password; asked at the terminal without it.",
    )(function)


def read_password(file: Path | None, *, prompt: str, confirm: bool) -> str:
    """Return a password from `file`, or ask for it; raises PassphraseError."""
    if file is not None:
        return read_secret_file(file, what="The password file")
    if not may_ask():
        raise PassphraseError("A password is needed and there is no terminal to ask at", option="--password-file")
    password: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return password


@click.group(name="operator")
def group() -> None:
    """People and tokens of a firmware server."""


for _command in COMMANDS:
    group.add_command(_command)


@group.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What they may do.")
@click.option(
    "--directory",
    "-d",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    envvar="FIRMAMENT_SERVER_DIRECTORY",
    show_envvar=True,
    help="The server's directory: this command works on the server's own machine. [default: .]",
)
@password_option
@output_options
def add(name: str, role: str, directory: Path, password_file: Path | None) -> None:
    """Add a person, on the server's own machine; the server may be running."""
    from firmament.cli.server import settings_of, who
    from firmament.core.clock import SystemClock
    from firmament.server.database.opening import command_database
    from firmament.server.database.target import database_target
    from firmament.server.people.passwords import hash_password
    from firmament.server.people.service import add_person
    from firmament.server.scope import Role, console

    layout, settings = settings_of(directory)
    hashed = hash_password(read_password(password_file, prompt=f"New password for {name}", confirm=True))
    with command_database(database_target(layout, settings)) as database:
        database.transact(
            lambda writing: add_person(
                writing, console(who()), name=name, role=Role(role), password_hash=hashed, now=SystemClock().now()
            )
        )
    out = output()
    out.document("operator", {"name": name, "role": role}, lines=[f"{name} may sign in as {role}."])
    out.next_command(f"firmament operator login {name} --server https://HOST:4443 --ca {layout.ca}")


@group.command()
@click.argument("name")
@server_options
@password_option
@click.option("--code", help="Of the second factor; asked for at the terminal without it.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to keep the token. [default: your settings]")
@output_options
def login(
    name: str,
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    password_file: Path | None,
    code: str | None,
    out: Path | None,
) -> None:
    """Sign in; keeps a token that is good for some hours, readable by you only."""
    from firmament.release.remote import OperatorApi

    del token_file
    address = server_address(server_url, ca, workspace)
    password = read_password(password_file, prompt=f"Password of {name}", confirm=False)
    with OperatorApi(address.url, token=None, ca=address.ca) as client:
        body = {"name": name, "password": password, **({"code": code} if code else {})}
        try:
            answer = client.call("POST", "/api/v1/login", body)
        except FirmamentError as error:
            if error.code != SecondFactorError.code or code or not may_ask():
                raise
            asked = click.prompt("Code of the authenticator, or a recovery code", hide_input=True, err=True)
            answer = client.call("POST", "/api/v1/login", {**body, "code": asked})
    path = (out or session_file()).absolute()
    _store_secret(path, answer["token"])
    say = output()
    say.document(
        "operator-login",
        {"role": answer["role"], "expires_at": answer["expires_at"], "token_file": str(path)},
        lines=[f"Signed in as {name} ({answer['role']}). Token: {path}"],
    )


@group.command()
@server_options
@click.option("--role", type=click.Choice(ROLES), required=True, help="At most your own.")
@click.option("--product", help="Limit it to one product.")
@click.option(
    "--hours",
    type=click.FloatRange(min=0.001, max=366 * 24),
    default=24.0,
    show_default=True,
    help="How long it is good.",
)
@click.option("--label", default="", help="What it is for.")
@click.option("--out", type=click.Path(path_type=Path), help="Write it to this file (0600) instead of stdout.")
@output_options
def token(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    role: str,
    product: str | None,
    hours: float,
    label: str,
    out: Path | None,
) -> None:
    """Make a token for a machine, e.g. a build server; it is shown once."""
    body: dict[str, Any] = {"role": role, "expires_in_s": max(1, int(hours * HOUR_S)), "label": label}
    if product is not None:
        body["product"] = product
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("POST", "/api/v1/tokens", body)
    if out is not None:
        _store_secret(out.absolute(), answer.pop("token"))
        answer["token_file"] = str(out)
    output().document("operator-token", answer, lines=[str(answer.get("token", answer.get("token_file")))])


@group.command(name="list")
@server_options
@output_options
def list_people(server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> None:
    """List people and their roles."""
    with connect(server_url, ca, workspace, token_file) as client:
        answer = client.call("GET", "/api/v1/people")
    out = output()
    rows = [(person["name"], person["role"], "disabled" if person["disabled"] else "") for person in answer["people"]]
    out.document("operators", answer, lines=out.table(rows, header=("NAME", "ROLE", "")))


@group.command()
@server_options
@output_options
def logout(server_url: str | None, ca: Path | None, workspace: Path | None, token_file: Path | None) -> None:
    """Make the token useless and forget it."""
    with connect(server_url, ca, workspace, token_file) as client:
        client.call("POST", "/api/v1/logout")
    session_file().unlink(missing_ok=True)
    output().document("operator-logout", {}, lines=["Signed out."])


def _store_secret(path: Path, secret: str) -> None:
    from firmament.durable import RealDisk, replace_durably

    disk = RealDisk()
    disk.make_directory(path.parent)
    replace_durably(disk, path, secret.encode() + b"\n")
