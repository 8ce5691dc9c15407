"""Signing in through an identity provider: OpenID Connect, authorization code with PKCE.

What is checked, and why: the state is bound to the browser by a cookie and used up by the first
answer (replay, login CSRF); the code is exchanged with the verifier that only this server knows
(stolen codes); the identity token's signature by a key of the provider, with an asymmetric
algorithm from a list (never ``none``, never the shared secret), its issuer, audience, expiry and
nonce. A person's tenant and role come from a claim by an explicit table; without an entry nobody
gets in, and nobody gets into two tenants.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

import urllib3

from firmament.core.canonical import decode_object
from firmament.errors import DependencyMissingError, FirmamentError, OutsideSignInError, SettingError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.people import sessions
from firmament.server.people.sessions import Proof
from firmament.server.people.tenants import FIRST_TENANT_NAME
from firmament.server.people.tenants import NAME as TENANT
from firmament.server.scope import Role, Scope
from firmament.server.tokens import hash_token

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.people.sessions import Opened
    from firmament.server.people.vault import Vault
    from firmament.server.settings import ServerSettings

MAX_ANSWER_LENGTH_BYTES: Final = 256 * 1024
# A discovery document is 3 KiB, a key set with certificates 20 KiB.
TIMEOUT_S: Final = 10.0
SIGN_IN_LIFETIME_S: Final = 600
LEEWAY_S: Final = 60
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""Asymmetric only."""
COOKIE: Final = "__Host-firmament-outside"
CALLBACK: Final = "/api/v1/outside/callback"
PURPOSE: Final = "outside-sign-in"
NO_PASSWORD: Final = "!"  # noqa: S105 - not a password, on purpose
"""No argon2 string: nobody signs in with a password as somebody whom a provider vouches for."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Where to send the browser, and the state to put into its cookie."""

    location: str
    state: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What one value of the claim gives."""

    role: Role
    tenant: str = FIRST_TENANT_NAME


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified identity token says."""

    issuer: str
    subject: str
    name: str
    role: Role
    tenant: str = FIRST_TENANT_NAME


class Provider:
    """One provider, as the settings name it; discovery and keys are fetched when they are needed (blocking)."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._roles = role_table(settings.oidc_roles)
        self._http = urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(connect=TIMEOUT_S, read=TIMEOUT_S),
            ca_certs=settings.oidc_ca or None,
            cert_reqs="CERT_REQUIRED",
        )
        self._configuration: Mapping[str, Any] | None = None

    def authorize(self, *, state: str, nonce: str, verifier: str) -> str:
        """Return the address that the browser is sent to; raises OutsideSignInError."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": self.redirect_uri,
            "scope": self._settings.oidc_scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{self._endpoint('authorization_endpoint')}?{urlencode(query)}"

    @property
    def redirect_uri(self) -> str:
        """Where the provider sends the browser back to."""
        return self._settings.oidc_public_url.rstrip("/") + CALLBACK

    def identify(self, *, code: str, verifier: str, nonce: str, now: datetime) -> Identity:
        """Exchange a code and verify what comes back; raises OutsideSignInError."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": verifier,
            "client_id": self._settings.oidc_client_id,
        }
        secret = _read_secret(self._settings.oidc_client_secret_file)
        headers = urllib3.make_headers(basic_auth=f"{self._settings.oidc_client_id}:{secret}") if secret else {}
        answer = self._fetch("POST", self._endpoint("token_endpoint"), form=form, headers=headers)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise OutsideSignInError("The provider sent no identity token")
        claims = self._verify(token, nonce=nonce, now=now)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= 255:  # noqa: PLR2004 - OpenID Connect Core §2
            raise OutsideSignInError("The identity token names nobody")
        grant = self._grant(claims.get(self._settings.oidc_claim))
        return Identity(self._settings.oidc_issuer, subject, _name(claims, subject), grant.role, grant.tenant)

    def _verify(self, token: str, *, nonce: str, now: datetime) -> dict[str, Any]:
        try:
            from joserfc import jwt
            from joserfc.errors import JoseError
            from joserfc.jwk import KeySet
        except ImportError as error:
            raise DependencyMissingError("Outside sign-in needs an extra package", extra="oidc") from error
        keys = self._fetch("GET", self._endpoint("jwks_uri"))
        try:
            read = jwt.decode(token, KeySet.import_key_set(keys), algorithms=list(ALGORITHMS))  # type: ignore[arg-type]  # a mapping of the same shape
            registry = jwt.JWTClaimsRegistry(
                now=int(now.timestamp()),
                leeway=LEEWAY_S,
                iss={"essential": True, "value": self._settings.oidc_issuer},
                aud={"essential": True, "value": self._settings.oidc_client_id},
                exp={"essential": True},
                nonce={"essential": True, "value": nonce},
            )
            registry.validate(read.claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise OutsideSignInError("The identity token is not valid", reason=type(error).__name__) from error
        claims = dict(read.claims)
        audience = claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != self._settings.oidc_client_id:
            raise OutsideSignInError("The identity token was made for somebody else", reason="azp")
        return claims

    def _grant(self, claim: object) -> Grant:
        values = claim if isinstance(claim, list) else [claim]
        found = [self._roles[value] for value in values if isinstance(value, str) and value in self._roles]
        if not found:
            raise OutsideSignInError(
                "The provider knows you, but gives you no role here", claim=self._settings.oidc_claim
            )
        if len({grant.tenant for grant in found}) > 1:
            raise OutsideSignInError("The provider gives you roles in several tenants; a person belongs to one")
        return max(found, key=lambda grant: list(Role).index(grant.role))

    def _endpoint(self, name: str) -> str:
        if self._configuration is None:
            issuer = self._settings.oidc_issuer
            found = self._fetch("GET", issuer.rstrip("/") + "/.well-known/openid-configuration")
            if found.get("issuer") != issuer:
                raise OutsideSignInError("The provider calls itself otherwise", expected=issuer)
            self._configuration = found
        address = self._configuration.get(name)
        if not isinstance(address, str) or urlsplit(address).scheme != "https":
            raise OutsideSignInError("The provider names no HTTPS endpoint", endpoint=name)
        return address

    def _fetch(
        self,
        method: str,
        address: str,
        *,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        body = urlencode(form).encode() if form is not None else None
        sent = {"accept": "application/json", **(headers or {})}
        if body is not None:
            sent["content-type"] = "application/x-www-form-urlencoded"
        try:
            response = self._http.request(
                method, address, body=body, headers=sent, redirect=False, preload_content=False
            )
            try:
                data = response.read(MAX_ANSWER_LENGTH_BYTES + 1)
            finally:
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise OutsideSignInError("The provider cannot be reached", reason=type(error).__name__) from error
        if response.status != 200:  # noqa: PLR2004 - HTTP's own number
            raise OutsideSignInError("The provider refused", status=response.status)
        try:
            return dict(decode_object(data, limit_bytes=MAX_ANSWER_LENGTH_BYTES, what="The provider's answer"))
        except FirmamentError as error:
            raise OutsideSignInError("The provider's answer cannot be read", reason=error.code) from error


def role_table(entries: tuple[str, ...]) -> dict[str, Grant]:
    """Read ``claim value=role`` and ``claim value=tenant/role`` entries; raises SettingError."""
    found: dict[str, Grant] = {}
    for entry in entries:
        value, separator, given = entry.rpartition("=")
        tenant, slash, role = given.rpartition("/")
        is_named = TENANT.fullmatch(tenant) if slash else True
        if not separator or role not in set(Role) or not value or not is_named:
            raise SettingError("oidc_roles is not well formed", found=entry, expected="claim value=[tenant/]role")
        found[value] = Grant(Role(role), tenant or FIRST_TENANT_NAME)
    return found


def begin(connection: Connection, vault: Vault, now: datetime) -> tuple[str, str, str]:
    """Remember a sign-in that goes to the provider; return state, nonce and verifier."""
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    moment = int(now.timestamp())
    connection.execute("DELETE FROM outside_sign_in WHERE expires_at < ?", (moment,))
    connection.execute(
        "INSERT INTO outside_sign_in(state_hash, sealed, expires_at) VALUES (?, ?, ?)",
        (
            hash_token(state),
            vault.seal(json.dumps([nonce, verifier]).encode(), purpose=PURPOSE),
            moment + SIGN_IN_LIFETIME_S,
        ),
    )
    return state, nonce, verifier


def take_back(connection: Connection, vault: Vault, state: str, now: datetime) -> tuple[str, str] | None:
    """Use up a state; return nonce and verifier, None when it is unknown, used or too old."""
    row = connection.execute(
        "DELETE FROM outside_sign_in WHERE state_hash = ? RETURNING sealed, expires_at", (hash_token(state),)
    ).fetchone()
    if row is None or now.timestamp() >= row["expires_at"]:
        return None
    nonce, verifier = json.loads(vault.open(bytes(row["sealed"]), purpose=PURPOSE))
    return nonce, verifier


def admit(connection: Connection, identity: Identity, *, address: str, client: str, now: datetime) -> Opened:
    """Open a session for whom the provider vouches, making the person at the first time.

    The role follows the provider at each sign-in, the tenant stays. Raises OutsideSignInError for a
    disabled person or tenant, and for a name that somebody else has here: a provider does not take
    over an account.
    """
    tenant = connection.execute("SELECT id, disabled FROM tenant WHERE name = ?", (identity.tenant,)).fetchone()
    if tenant is None or tenant["disabled"]:
        raise OutsideSignInError("The provider's tenant is not served here", tenant=identity.tenant)
    scope = Scope(tenant["id"], f"provider:{identity.issuer}")
    row = connection.execute(
        "SELECT p.id, p.tenant_id, p.name, p.role, p.disabled FROM outside_identity o "
        "JOIN person p ON p.id = o.person_id WHERE o.issuer = ? AND o.subject = ?",
        (identity.issuer, identity.subject),
    ).fetchone()
    if row is not None and row["disabled"]:
        raise OutsideSignInError("The person was disabled here", name=row["name"])
    if row is not None and row["tenant_id"] != scope.tenant_id:
        raise OutsideSignInError("The person belongs to another tenant here", name=row["name"])
    if row is None:
        person_id = _add(connection, scope, identity, now)
    else:
        person_id = int(row["id"])
        if row["role"] != identity.role.value:
            connection.execute("UPDATE person SET role = ? WHERE id = ?", (identity.role.value, person_id))
            events.append(connection, scope, Event.PERSON_CHANGED, now, subject=row["name"], role=identity.role.value)
    return sessions.open_console_session(
        connection, person_id=person_id, proof=Proof.OUTSIDE, address=address, client=client, now=now
    )


def _add(connection: Connection, scope: Scope, identity: Identity, now: datetime) -> int:
    taken = connection.execute(
        "SELECT 1 FROM person WHERE tenant_id = ? AND name = ?", (scope.tenant_id, identity.name)
    ).fetchone()
    if taken is not None:
        raise OutsideSignInError("The name is somebody else's here", name=identity.name)
    moment = int(now.timestamp())
    person = connection.execute(
        "INSERT INTO person(tenant_id, name, password_hash, role, created_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
        (scope.tenant_id, identity.name, NO_PASSWORD, identity.role.value, moment),
    ).fetchone()
    connection.execute(
        "INSERT INTO outside_identity(issuer, subject, tenant_id, person_id, created_at) VALUES (?, ?, ?, ?, ?)",
        (identity.issuer, identity.subject, scope.tenant_id, person["id"], moment),
    )
    events.append(
        connection, scope, Event.PERSON_ADDED, now, subject=identity.name, role=identity.role.value, outside=True
    )
    return int(person["id"])


def _name(claims: Mapping[str, Any], subject: str) -> str:
    told = str(claims.get("preferred_username") or claims.get("email") or subject).lower()
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in told)[:64]
    return name.strip("._-") or "person"


def _read_secret(path: str) -> str:
    if not path:
        return ""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a name from the settings
            return file.read(4096).strip()
    except OSError as error:
        raise SettingError("The client secret cannot be read", setting="oidc_client_secret_file") from error
