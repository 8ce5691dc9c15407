"""One's own account and, for who runs the server, tenants: added to ``firmament operator``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.common import output
from firmament.cli.operator_client import element
from firmament.cli.selection import with_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.release.remote import OperatorApi

ROLES: Final = ("viewer", "operator", "releaser", "approver", "admin")
FACTOR: Final = "/api/v1/me/second-factor"
SESSIONS: Final = "/api/v1/me/sessions"
TENANTS: Final = "/api/v1/tenants"


@click.group()
def totp() -> None:
    """Ask for codes of an authenticator as well."""


@totp.command("begin")
@with_server
def begin_factor(server: Callable[[], OperatorApi]) -> None:
    """Show a secret for an authenticator; it counts once it is confirmed."""
    with server() as client:
        answer = client.call("POST", FACTOR)
    lines = [f"Secret: {answer['secret']}", f"Or as a link: {answer['uri']}"]
    output().document("operator-totp", answer, lines=lines)
    output().next_command("firmament operator totp confirm CODE")


@totp.command("confirm")
@click.argument("code")
@with_server
def confirm_factor(server: Callable[[], OperatorApi], code: str) -> None:
    """Confirm it with a code; shows recovery codes, once."""
    with server() as client:
        answer = client.call("POST", FACTOR + "/confirm", {"code": code})
    lines = [
        "From now on a code is asked for. Recovery codes, each works once; keep them apart from the authenticator:"
    ]
    output().document("operator-totp-codes", answer, lines=[*lines, *(f"  {one}" for one in answer["recovery_codes"])])


@totp.command("remove")
@click.argument("code")
@with_server
def remove_factor(server: Callable[[], OperatorApi], code: str) -> None:
    """Remove your second factor; needs a code."""
    with server() as client:
        client.call("POST", FACTOR + "/remove", {"code": code})
    output().document("operator-totp-removed", {}, lines=["No code is asked for any more."])


@click.group()
def sessions() -> None:
    """Show where you are signed in, and end it."""


@sessions.command("list")
@with_server
def list_sessions(server: Callable[[], OperatorApi]) -> None:
    """List your sessions; the one used here is marked."""
    with server() as client:
        answer = client.call("GET", SESSIONS)
    out = output()
    rows = [
        (str(one["session_id"]), one["kind"], one["address"], one["proof"], "this one" if one["current"] else "")
        for one in answer["sessions"]
    ]
    out.document("operator-sessions", answer, lines=out.table(rows, header=("SESSION", "KIND", "FROM", "PROOF", "")))


@sessions.command("revoke")
@click.argument("session_id", type=int, required=False)
@click.option("--others", is_flag=True, help="All but the one used here.")
@with_server
def revoke_sessions(server: Callable[[], OperatorApi], session_id: int | None, *, others: bool) -> None:
    """End one of your sessions, or all others."""
    if (session_id is None) != others:
        raise click.UsageError("Name one session, or give --others.")
    with server() as client:
        client.call("DELETE", SESSIONS if others else f"{SESSIONS}/{session_id}")
    output().document("operator-sessions-revoked", {}, lines=["Ended."])


@click.group()
def tokens() -> None:
    """Tokens that machines use."""


@tokens.command("list")
@click.option("--all", "everybody", is_flag=True, help="Everybody's; administrators only.")
@with_server
def list_tokens(server: Callable[[], OperatorApi], *, everybody: bool) -> None:
    """List tokens that hold, with their last use."""
    with server() as client:
        answer = client.call("GET", f"/api/v1/tokens?all={int(everybody)}")
    out = output()
    rows = [
        (str(one["token_id"]), one["owner"], one["role"], one["product"] or "all", one["label"], one["last_address"])
        for one in answer["tokens"]
    ]
    header = ("TOKEN", "OWNER", "ROLE", "PRODUCT", "LABEL", "LAST FROM")
    out.document("operator-tokens", answer, lines=out.table(rows, header=header))


@tokens.command("revoke")
@click.argument("token_id", type=int)
@with_server
def revoke_token(server: Callable[[], OperatorApi], token_id: int) -> None:
    """Make a token useless."""
    with server() as client:
        client.call("DELETE", f"/api/v1/tokens/{token_id}")
    output().document("operator-token-revoked", {"token_id": token_id}, lines=["Revoked."])


def _file(name: str, what: str) -> Callable[..., Any]:
    return click.option(name, type=click.Path(path_type=Path), help=f"File (mode 0600) with the {what}.")


@click.command()
@_file("--old-file", "present password")
@_file("--new-file", "new password")
@with_server
def password(server: Callable[[], OperatorApi], old_file: Path | None, new_file: Path | None) -> None:
    """Change your password; ends all your other sessions."""
    from firmament.cli.operator import read_password

    old = read_password(old_file, prompt="Present password", confirm=False)
    new = read_password(new_file, prompt="New password", confirm=True)
    with server() as client:
        client.call("POST", "/api/v1/me/password", {"old": old, "new": new})
    output().document("operator-password", {}, lines=["Changed. Other sessions were ended."])


@click.group()
def tenant() -> None:
    """Tenants of the server; for administrators of the first one."""


@tenant.command("list")
@with_server
def list_tenants(server: Callable[[], OperatorApi]) -> None:
    """List tenants and what each has."""
    with server() as client:
        answer = client.call("GET", TENANTS)
    out = output()
    rows = [
        (
            one["name"],
            str(one["people"]),
            str(one["products"]),
            str(one["devices"]),
            "disabled" if one["disabled"] else "",
        )
        for one in answer["tenants"]
    ]
    out.document("tenants", answer, lines=out.table(rows, header=("TENANT", "PEOPLE", "PRODUCTS", "DEVICES", "")))


@tenant.command("add")
@click.argument("name")
@with_server
def add_tenant(server: Callable[[], OperatorApi], name: str) -> None:
    """Make a tenant, with nobody in it."""
    with server() as client:
        client.call("POST", TENANTS, {"name": name})
    output().document("tenant", {"name": name}, lines=[f"Tenant {name} is there."])
    output().next_command(f"firmament operator tenant person {name} NAME --role admin")


@tenant.command("person")
@click.argument("name")
@click.argument("person")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What they may do.")
@_file("--password-file", "new person's password")
@with_server
def add_person_of_tenant(
    server: Callable[[], OperatorApi], name: str, person: str, role: str, password_file: Path | None
) -> None:
    """Add a tenant's first person, who then adds the others."""
    from firmament.cli.operator import read_password

    secret = read_password(password_file, prompt=f"New password for {person}", confirm=True)
    with server() as client:
        client.call("POST", f"{TENANTS}/{element(name)}/people", {"name": person, "role": role, "password": secret})
    output().document("tenant", {"name": name}, lines=[f"{person}@{name} may sign in as {role}."])


@tenant.command("product")
@click.argument("name")
@click.argument("product")
@with_server
def give_product(server: Callable[[], OperatorApi], name: str, product: str) -> None:
    """Give a new product line to a tenant."""
    with server() as client:
        client.call("PUT", f"{TENANTS}/{element(name)}/products/{element(product)}")
    output().document("tenant", {"name": name}, lines=[f"{product} is {name}'s."])


@tenant.command("disable")
@click.argument("name")
@with_server
def disable_tenant(server: Callable[[], OperatorApi], name: str) -> None:
    """Refuse a tenant's people; its devices keep what they were assigned."""
    with server() as client:
        client.call("DELETE", f"{TENANTS}/{element(name)}")
    output().document("tenant", {"name": name}, lines=[f"{name} is disabled."])


@tenant.command("enable")
@click.argument("name")
@with_server
def enable_tenant(server: Callable[[], OperatorApi], name: str) -> None:
    """Take a disabled tenant back."""
    with server() as client:
        client.call("POST", f"{TENANTS}/{element(name)}/enable")
    output().document("tenant", {"name": name}, lines=[f"{name} is enabled."])


COMMANDS: Final[tuple[click.Command, ...]] = (totp, sessions, tokens, password, tenant)
