"""Every route, every role, foreign ids: from the server's own OpenAPI document, so that a new route fails until classified.

Two tenants on a real server process. People of each role of the second one ask every operation with
the names and ids of the first one's things. Allowed is exactly what the table of roles says; what is
foreign is answered like what does not exist; no row of the first tenant changes, and nothing of it is
in any answer.
"""

import contextlib
import json
import re
import uuid

import pytest
from support.databases import fresh_database
from support.server_world import HASHED, Client, World, submission, target_of

from firmament.core.clock import SystemClock
from firmament.server.database.opening import command_database
from firmament.server.database.schema import metadata
from firmament.server.people import service as people
from firmament.server.people import tenants
from firmament.server.scope import ALLOWED, SERVER_WIDE, Action, Role, console

PUBLIC = "public"
OWN = "own account"
CLASSES = {
    Action.READ: """
        GET /api/v1/devices/versions|GET /api/v1/devices/versions/days|GET /api/v1/trust|GET /api/v1/image/state|GET /api/v1/products
        GET /api/v1/releases|GET /api/v1/releases/{product}/{version}|GET /api/v1/devices/count
        GET /api/v1/releases/{product}/{version}/payloads/{sha256}
        GET /api/v1/products/{product}/images
        GET /api/v1/devices/attributes|GET /api/v1/tags|GET /api/v1/groups|GET /api/v1/filters
        PUT /api/v1/filters/{name}|DELETE /api/v1/filters/{name}|GET /api/v1/sites
        POST /api/v1/rollouts/plan|GET /api/v1/rollouts|GET /api/v1/rollouts/{rollout_id}
        GET /api/v1/rollouts/{rollout_id}/reasons|GET /api/v1/rollouts/{rollout_id}/targets
        GET /api/v1/rollouts/{rollout_id}/series|GET /api/v1/rollouts/{rollout_id}/actions/{action}
        GET /api/v1/devices/{device_id}/why|GET /api/v1/devices/{device_id}/timeline|GET /api/v1/devices
        GET /api/v1/devices/{device_id}|GET /api/v1/devices/{device_id}/attempts|GET /api/v1/updates/check
        GET /api/v1/updates/download|GET /api/v1/updates/device/{device_id}|GET /api/v1/consent/policy
        GET /api/v1/consent/report|GET /api/v1/consent/events|GET /api/v1/devices/{device_id}/consent
        GET /api/v1/events|GET /api/v1/audit/key|GET /api/v1/releases/{product}/{version}/proof
        GET /api/v1/sbom/{product}/{version}
        GET /api/v1/sbom/{product}/{version}/diff|GET /api/v1/vulnerabilities|GET /api/v1/vulnerabilities/{name}
        GET /api/v1/notifications|GET /api/v1/notifications/preview
    """,
    Action.MANAGE_PEOPLE: """
        GET /api/v1/people|POST /api/v1/people|DELETE /api/v1/people/{name}|POST /api/v1/people/{name}/enable
        PUT /api/v1/people/{name}/role|POST /api/v1/people/{name}/password|DELETE /api/v1/people/{name}/sessions
        DELETE /api/v1/people/{name}/second-factor
    """,
    Action.MANAGE_TENANTS: """
        GET /api/v1/tenants|POST /api/v1/tenants|DELETE /api/v1/tenants/{tenant}
        POST /api/v1/tenants/{tenant}/enable|POST /api/v1/tenants/{tenant}/people
        PUT /api/v1/tenants/{tenant}/products/{product}
    """,
    Action.UPLOAD: """
        PUT /api/v1/blobs/{sha256}|HEAD /api/v1/blobs/{sha256}
        GET /api/v1/content-keys/recipient|PUT /api/v1/content-keys/{sha256}
    """,
    Action.PUBLISH: "POST /api/v1/image/publish",
    Action.PROMOTE: "POST /api/v1/releases/{product}/{version}/promote",
    Action.MANAGE_DEVICES: """
        POST /api/v1/devices/tags|PUT /api/v1/devices/{device_id}/place|PUT /api/v1/groups/{name}
        DELETE /api/v1/groups/{name}|POST /api/v1/groups/{name}/members|PUT /api/v1/sites/{name}
        POST /api/v1/devices/{device_id}/quarantine|DELETE /api/v1/devices/{device_id}/quarantine
        POST /api/v1/devices/{device_id}/pin|DELETE /api/v1/devices/{device_id}/pin
        POST /api/v1/devices/{device_id}/mute|DELETE /api/v1/devices/{device_id}/mute
        POST /api/v1/devices/clear-failures|POST /api/v1/devices/{device_id}/disable
        POST /api/v1/devices/{device_id}/enable
        PUT /api/v1/devices/{device_id}/wrapping-key|POST /api/v1/devices/{device_id}/wrapping-key/revoke
    """,
    Action.START_ROLLOUT: "POST /api/v1/rollouts",
    Action.ASSIGN: """
        POST /api/v1/devices/{device_id}/assign|DELETE /api/v1/devices/{device_id}/assign|POST /api/v1/parcels
    """,
    Action.ENROL: "POST /api/v1/enrolment-tokens|POST /api/v1/enrolments/csr",
    Action.RECORD: "POST /api/v1/updates/record|POST /api/v1/receipts",
    Action.SEE_AUDIT: """
        GET /api/v1/audit/events|GET /api/v1/audit/checkpoints|GET /api/v1/audit/export
        GET /api/v1/release-log|GET /api/v1/release-log/leaves|GET /api/v1/evidence/compliance|GET /api/v1/events/stream
    """,
    Action.IMPORT_EVIDENCE: """
        PUT /api/v1/sbom/{product}/{version}|POST /api/v1/vulnerabilities|DELETE /api/v1/vulnerabilities/{name}
    """,
    Action.MANAGE_NOTIFICATIONS: """
        GET /api/v1/notifications/outlets|POST /api/v1/notifications/outlets
        DELETE /api/v1/notifications/outlets/{name}|GET /api/v1/notifications/outlets/{name}/deliveries
        POST /api/v1/notifications/outlets/{name}/test|POST /api/v1/notifications/outlets/{name}/enable
        POST /api/v1/notifications/outlets/{name}/mute
    """,
    Action.STOP: "POST /api/v1/notifications/{number}/acknowledge",
    Action.SET_CONSENT: "PUT /api/v1/consent/policy|DELETE /api/v1/consent/policy",
    # Looked up first, then judged by the rollout's own table: a foreign one is not there for anybody.
    "found first": """
        POST /api/v1/rollouts/{rollout_id}/start|POST /api/v1/rollouts/{rollout_id}/approve
        POST /api/v1/rollouts/{rollout_id}/deny|POST /api/v1/rollouts/{rollout_id}/pause
        POST /api/v1/rollouts/{rollout_id}/resume|POST /api/v1/rollouts/{rollout_id}/next-wave
        POST /api/v1/rollouts/{rollout_id}/abort|POST /api/v1/rollouts/{rollout_id}/revert
        POST /api/v1/rollouts/{rollout_id}/retry-failed|POST /api/v1/rollouts/{rollout_id}/acknowledge
    """,
    OWN: """
        POST /api/v1/me/password|POST /api/v1/me/second-factor|POST /api/v1/me/second-factor/confirm
        POST /api/v1/me/second-factor/remove|GET /api/v1/me/sessions|DELETE /api/v1/me/sessions
        DELETE /api/v1/me/sessions/{session_id}|GET /api/v1/tokens|POST /api/v1/tokens
        DELETE /api/v1/tokens/{token_id}|GET /api/v1/me
    """,
    PUBLIC: "GET /health|GET /healthz|GET /readyz|POST /api/v1/login|GET /metrics|GET /api/v1/outside|GET /api/v1/outside/start|GET /api/v1/outside/callback",  # metrics: to loopback and given networks, sums only
}
UNTOLD = {"POST /api/v1/logout"}
"""Ends the session that asks; played by itself in the tests of sessions."""
NEEDED = {
    operation.strip(): needed
    for needed, operations in CLASSES.items()
    for operation in re.split(r"[|\n]", operations)
    if operation.strip()
}
SECRET = "hushhush"
WHISPER = "whisper-7f3a"
"""Is in the first tenant's rows only, and nobody of the second one ever says it."""
NAMES_PRODUCTS = {"GET /api/v1/products", "GET /api/v1/trust", "GET /api/v1/image/state", "GET /api/v1/releases"}
STREAM = "GET /api/v1/events/stream"


class Tenants:
    """The first tenant's things, and one client for each role of the second."""

    def __init__(self, directory, kind):
        self.world = world = World(
            directory, env={"FIRMAMENT_SERVER_LOGIN_BURST": "100"}, database=fresh_database(kind)
        )
        now = SystemClock().now()

        def others(writing):
            tenants.add_tenant(writing, console("test"), name="acme", now=now)
            tenants.give_product(writing, console("test"), tenant="main", product="thermo", now=now)
            tenants.give_product(writing, console("test"), tenant="acme", product="pump", now=now)
            inside = tenants.inside(writing, console("test"), "acme")
            for role in Role:
                people.add_person(writing, inside, name=role.value, role=role, password_hash=HASHED, now=now)

        with command_database(target_of(world.server.directory)) as database:
            database.transact(others)
        world.begin()
        world.publish_release("thermo", f"9.9-{SECRET}", 9, SECRET.encode())
        self.clients = {role: world.sign_in(f"{role.value}@acme") for role in Role}
        manifest = world.author.release("pump", "1.0", 1, b"pump")
        releaser = self.clients[Role.RELEASER]
        world.upload(releaser)
        answer = world.publish(submission(world.author.product("pump")), releaser)
        assert answer.json["releases"] == [manifest.release_id], answer.body
        admin = world.admin
        self.device = world.device()
        for method, path, body in (
            ("POST", "/api/v1/people", {"name": SECRET, "role": "viewer", "password": "x" * 12}),
            ("PUT", f"/api/v1/groups/{SECRET}", {"query": f"tag={WHISPER}"}),
            ("PUT", f"/api/v1/filters/{SECRET}", {"query": "hardware=rpi4"}),
            ("PUT", f"/api/v1/sites/{SECRET}", {}),
            ("POST", "/api/v1/devices/tags", {"ids": [self.device.device_id], "add": [WHISPER]}),
            (
                "PUT",
                "/api/v1/consent/policy",
                {"level": "group", "subject": SECRET, "update_class": "feature", "mode": "ask"},
            ),
            (
                "POST",
                "/api/v1/rollouts",
                {"release": f"thermo/9.9-{SECRET}", "name": SECRET, "draft": True, "note": WHISPER},
            ),
            ("POST", "/api/v1/tokens", {"role": "viewer", "expires_in_s": 3600, "label": WHISPER}),
        ):
            answer = admin.ask(method, path, body)
            assert answer.status < 300, (path, answer.body)
        self.rollout = admin.ask("GET", "/api/v1/rollouts").json["rollouts"][0]["rollout_id"]
        self.operations = admin.ask("GET", "/openapi.json").json["paths"]
        server = world.server
        self.session_id = server.rows("SELECT MIN(id) AS id FROM person_session WHERE tenant_id = 1")[0]["id"]
        self.token_id = server.rows("SELECT MIN(id) AS id FROM token WHERE tenant_id = 1")[0]["id"]
        self.blob = server.rows("SELECT MIN(digest) AS d FROM tenant_blob WHERE tenant_id = 1")[0]["d"].split(":")[1]

    def names(self, *, foreign):
        """Values for parameters and fields: the first tenant's things, or things that nobody has."""
        nothing = "nothing-here"
        return {
            "device_id": self.device.device_id if foreign else str(uuid.UUID(int=7)),
            "rollout_id": self.rollout if foreign else str(uuid.UUID(int=8)) if "-" in str(self.rollout) else "999999",
            "name": SECRET if foreign else nothing,
            "product": "thermo" if foreign else nothing,
            "version": f"9.9-{SECRET}" if foreign else "9.9-nothing",
            "action": "pause",
            "number": 1 if foreign else 999_999,
            "session_id": self.session_id if foreign else 999_999,
            "token_id": self.token_id if foreign else 999_999,
            "sha256": self.blob if foreign else "0" * 64,
            "tenant": "main" if foreign else nothing,
            "release": f"thermo/9.9-{SECRET}" if foreign else f"{nothing}/9.9-nothing",
            "device_type": "thermo" if foreign else nothing,
        }

    def ask(self, client, operation, *, foreign):
        method, path = operation.split(" ")
        names = self.names(foreign=foreign)
        real = re.sub(r"\{(\w+)\}", lambda match: str(names[match[1]]), path)
        query = {key: names[key] for key in ("release", "device_type", "version")}
        query |= {"device": names["device_id"], "level": "group", "subject": names["name"], "update_class": "feature"}
        query |= {"other": names["release"], "against": names["version"], "all": 0}
        if "product" in path or operation in {"GET /api/v1/releases", "GET /api/v1/devices/versions"}:
            query["product"] = names["product"]
        text = "&".join(f"{key}={value}" for key, value in query.items())
        if method in {"GET", "DELETE"}:
            real += "?" + text
        body = self.body(self.operations[path][method.lower()], names) if method in {"POST", "PUT"} else None
        if operation == STREAM:
            return self.head(client, real)
        return client.ask(method, real, body)

    @staticmethod
    def head(client, path):
        """Read the status of an answer that does not end."""
        response = client.pool.request(
            "GET",
            client.server.url + path,
            headers={"authorization": f"Bearer {client.token}"},
            preload_content=False,
        )
        with contextlib.closing(response):
            return type("Head", (), {"status": response.status, "body": b"", "headers": {}, "code": ""})()

    def body(self, operation, names):
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            return b"{}"
        properties = content["application/json"].get("schema", {}).get("properties", {})
        return {field: value for field in properties if (value := self.field(field, names, properties)) is not None}

    def field(self, field, names, properties):
        return {
            "ids": [names["device_id"]],
            "site": names["name"],
            "gateway": names["device_id"],
            "query": "hardware=rpi4" if "ids" not in properties else None,
            "add": [names["name"]] if "ids" in properties else [names["device_id"]],
            "selector": "",
            "role": "viewer",
            "password": "long enough for all",
            "old": "wrong", "new": "long enough for all", "code": "000000",
            "level": "device",
            "subject": names["device_id"],
            "update_class": "feature",
            "mode": "ask",
            "metadata": {"1.thermo.json": "{}"},
            "channel": "stable",
            "expires_in_s": 60,
            "for_s": 60,
            "reason": "why not",
            "keyid": "0" * 32, "wrap": "AA==", "envelope": {},
            "old_version": "1", "new_version": "2", "status": "done",
            "kind": "webhook", "target": "https://example.com/hook",
            "csr_pem": "x", "hardware": "rpi4", "hpke_public_key": "00" * 1216,
            **names,
        }.get(field)  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory, database_kind):
    made = Tenants(tmp_path_factory.mktemp("routes"), database_kind)
    yield made
    made.world.close()


def operations(two):
    return [
        f"{method.upper()} {path}"
        for path, methods in two.operations.items()
        for method in methods
        if f"{method.upper()} {path}" not in UNTOLD
    ]


def may(role, needed):
    # These people are not of the first tenant.
    return needed in ALLOWED[role] and needed not in SERVER_WIDE


def test_every_route_is_classified(two):
    assert set(operations(two)) - set(NEEDED) == set(), "say in this file what a new route needs"
    assert set(NEEDED) - set(operations(two)) == set()


def test_without_a_token_nothing_but_health_and_sign_in_answers(two):
    with Client(two.world.server) as nobody:
        for operation in operations(two):
            status = two.ask(nobody, operation, foreign=True).status
            assert (status == 401) == (NEEDED[operation] is not PUBLIC or operation == "POST /api/v1/login"), (
                operation,
                status,
            )


# What ends or slows down the asking session itself is asked last.
LAST = ("POST /api/v1/me", "DELETE /api/v1/me")


def rows_of_the_first(two):
    """Every row of the first tenant, but for who was seen when, and what the server signs by itself."""
    rows = two.world.server.rows
    return {
        table.name: sorted(repr(row) for row in rows(f"SELECT * FROM {table.name} WHERE tenant_id = 1"))
        for table in metadata.sorted_tables
        if "tenant_id" in table.columns and table.name not in {"person_session", "tree_head", "checkpoint"}
    }


def essence(answer):
    """An answer without what differs by request or repeats what was asked."""
    if answer.status < 400:
        return answer.status, answer.body if b"{" not in answer.body else ""
    value = json.loads(answer.body) if answer.body else {}
    return answer.status, value.get("type"), value.get("title")


def test_62_every_role_gets_what_the_table_says_and_nothing_of_another_tenant(two):
    before = rows_of_the_first(two)
    wrong, leaks, told = [], [], []
    ordered = sorted(operations(two), key=lambda operation: operation.startswith(LAST))
    asked = 0
    for role, client in two.clients.items():
        for operation in ordered:
            needed = NEEDED[operation]
            if operation == "POST /api/v1/login" or (needed in {OWN, PUBLIC} and role is not Role.VIEWER):
                continue  # a wrong password counts against its name, whoever gives it
            foreign = two.ask(client, operation, foreign=True)
            asked += 1
            is_refused = foreign.status == 403
            if isinstance(needed, Action) and is_refused == may(role, needed):
                wrong.append((role.value, operation, foreign.status, foreign.body[:160]))
            if foreign.status >= 500:
                wrong.append((role.value, operation, foreign.status, foreign.body[:160]))
            body = foreign.body.decode(errors="replace")
            if WHISPER in body or (operation in NAMES_PRODUCTS and "thermo" in body):
                leaks.append((role.value, operation, body[:200]))
            if foreign.status >= 400:
                nothing = two.ask(client, operation, foreign=False)
                if essence(nothing) != essence(foreign):
                    told.append((role.value, operation, essence(foreign), essence(nothing)))
    assert not wrong, "\n".join(map(str, wrong))
    assert not leaks, "\n".join(map(str, leaks))
    assert not told, "\n".join(map(str, told))
    assert rows_of_the_first(two) == before
    assert asked > 500


def test_62_metadata_of_a_foreign_product_is_refused_like_that_of_none(two):
    author, releaser = two.world.author, two.world.sign_in("releaser@acme")
    author.release("thermo", "10.0", 10, b"new")
    foreign = releaser.ask("POST", "/api/v1/image/publish", submission(author.product("thermo")))
    assert foreign.code == "trust/malformed-metadata"
    state = releaser.ask("GET", "/api/v1/image/state").json["roles"]
    assert "pump" in state
    assert "thermo" not in state


def test_62_a_device_fetches_what_is_of_its_own_tenant(two):
    acme = two.world.client(two.clients[Role.ADMIN].token)
    token = acme.ask("POST", "/api/v1/enrolment-tokens", {"product": "pump", "expires_in_s": 60}).json["token"]
    device = two.world.new_device(product="pump")
    assert device.enrol(two.world.server, token).status == 200
    thermo = two.device.client
    for own, other, product in ((device.client, thermo, "pump"), (thermo, device.client, "thermo")):
        (release,) = two.world.server.rows(
            "SELECT target, digest FROM release r JOIN product p ON p.id = r.product_id WHERE p.name = ?", product
        )
        directory, _, name = release["target"].rpartition("/")
        path = f"/v1/image/targets/{directory}/{release['digest'].partition(':')[2]}.{name}"
        assert own.ask("GET", path).status == 200
        assert other.ask("GET", path).status == 404
        assert other.ask("GET", f"/v1/image/metadata/2.{product}.json").status == 404
        assert own.ask("GET", f"/v1/image/metadata/2.{product}.json").status == 200
        assert other.ask("GET", "/v1/image/metadata/timestamp.json").status == 200
