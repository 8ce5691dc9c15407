"""Signing in through an identity provider: a certified one in a process of its own, and a hostile one."""

import base64
import hmac
import http.server
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path

import playwright
import pytest
import urllib3
from joserfc import jwt
from joserfc.jwk import RSAKey
from support.databases import fresh_database
from support.server_world import World

from firmament.errors import OutsideSignInError, SettingError
from firmament.server.people.outside import COOKIE, Grant, Provider, role_table
from firmament.server.scope import Role
from firmament.server.settings import ServerSettings

SUPPORT = Path(__file__).parents[1] / "support/oidc"
NODE = Path(playwright.__file__).parent / "driver/node"
CLIENT = "firmament"
ROLES = ("fleet-operators=operator", "fleet-viewers=viewer", "acme=acme/operator")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", directory / "key.pem", "-out", directory / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return directory


# --- the real one --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """The provider's program with what it needs."""
    directory = tmp_path_factory.mktemp("packages")
    for name in ("package.json", "package-lock.json", "provider.mjs"):
        shutil.copy(SUPPORT / name, directory / name)
    npm = shutil.which("npm")
    assert npm is not None, "npm is not installed: run `make packages`"
    subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=directory, check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory, certificate, packages, database_kind):
    directory = tmp_path_factory.mktemp("outside")
    made = World(
        directory / "world",
        database=fresh_database(database_kind),
        env={
            "FIRMAMENT_SERVER_OIDC_CLIENT_ID": CLIENT,
            "FIRMAMENT_SERVER_OIDC_CA": str(certificate / "cert.pem"),
            "FIRMAMENT_SERVER_OIDC_ROLES": ",".join(ROLES),
            "FIRMAMENT_SERVER_LOGIN_BURST": "1000",
        },
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [NODE, "provider.mjs", str(port), certificate / "cert.pem", certificate / "key.pem", CLIENT,
         f"{made.server.url}/api/v1/outside/callback"],
        cwd=packages, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        # Each of the two must know the other's port.
        made.server.env |= {
            "FIRMAMENT_SERVER_OIDC_ISSUER": f"https://localhost:{port}",
            "FIRMAMENT_SERVER_OIDC_PUBLIC_URL": made.server.url,
        }
        made.restart()
        made.provider_ca = certificate / "cert.pem"
        yield made
    finally:
        made.close()
        process.terminate()
        process.wait()
        process.stdout.close()


class Browser:
    """As much of a browser as signing in needs: cookies per host, redirects one by one, forms."""

    def __init__(self, world):
        self.world = world
        self.pools = {
            "server": urllib3.PoolManager(ssl_context=ssl.create_default_context(cafile=str(world.server.ca))),
            "provider": urllib3.PoolManager(ssl_context=ssl.create_default_context(cafile=str(world.provider_ca))),
        }
        self.cookies = {"server": {}, "provider": {}}

    def ask(self, where, url, form=None):
        cookies = self.cookies[where]
        headers = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
        body = None
        if form is not None:
            headers["content-type"] = "application/x-www-form-urlencoded"
            body = urllib.parse.urlencode(form)
        response = self.pools[where].request(
            "GET" if form is None else "POST", url, headers=headers, body=body, redirect=False, retries=False
        )
        for line in response.headers.getlist("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            cookies[name] = value
            if not value:
                del cookies[name]
        return response

    def start(self):
        answer = self.ask("server", self.world.server.url + "/api/v1/outside/start")
        assert answer.status == 303, answer.data
        return answer.headers["location"]

    def agree(self, location, login):
        """Sign in and consent at the provider; return where it sends the browser back to."""
        base = "{0.scheme}://{0.netloc}".format(urllib.parse.urlsplit(location))
        form = None
        for _ in range(12):
            answer = self.ask("provider", location, form)
            form = None
            if answer.status in {302, 303}:
                location = urllib.parse.urljoin(base, answer.headers["location"])
                if "/api/v1/outside/callback" in location:
                    return location.partition("/api/")[2]
                continue
            text = answer.data.decode()
            assert answer.status == 200, text
            location = urllib.parse.urljoin(base, re.search(r'action="([^"]+)"', text)[1])
            form = {"prompt": re.search(r'name="prompt" value="(\w+)"', text)[1], "login": login, "password": "any"}
        raise AssertionError("the provider does not come back")

    def finish(self, path):
        return self.ask("server", f"{self.world.server.url}/api/{path}")

    def sign_in(self, login):
        return self.finish(self.agree(self.start(), login))


def code_of(answer):
    return json.loads(answer.data)["type"]


def test_the_provider_vouches_and_its_groups_give_the_role(world):
    browser = Browser(world)
    answer = browser.sign_in("olivia")
    assert (answer.status, answer.headers["location"]) == (303, "/"), answer.data
    secret = browser.cookies["server"]["__Host-firmament"]
    me = world.client(secret).ask("GET", "/api/v1/me").json
    assert (me["name"], me["role"], me["tenant"]) == ("olivia", "operator", "main")
    assert COOKIE not in browser.cookies["server"]
    console = browser.ask("server", world.server.url + "/")  # the same cookie opens the console
    assert (console.status, b"olivia" in console.data) == (200, True)
    again = Browser(world)
    assert again.sign_in("olivia").status == 303
    people = {one["name"]: one for one in world.admin.ask("GET", "/api/v1/people").json["people"]}
    assert people["olivia"]["role"] == "operator"  # one person, however often


def test_the_sign_in_page_has_the_providers_button(world):
    page = Browser(world).ask("server", world.server.url + "/login").data.decode()
    (button,) = re.findall(r'<a class="btn" href="([^"]+)">.*?Sign in with localhost</a>', page)
    answer = Browser(world).ask("server", world.server.url + button)
    assert (answer.status, urllib.parse.urlsplit(answer.headers["location"]).path) == (303, "/auth")


def test_who_has_no_mapped_group_is_not_let_in_and_nobody_is_admin_by_default(world):
    answer = Browser(world).sign_in("nobody")
    assert (answer.status, code_of(answer)) == (401, "access/outside-sign-in")
    names = [one["name"] for one in world.admin.ask("GET", "/api/v1/people").json["people"]]
    assert "nobody" not in names


def test_a_group_may_lead_into_another_tenant_but_never_into_two(world):
    assert code_of(Browser(world).sign_in("alice")) == "access/outside-sign-in", "there is no such tenant yet"
    assert world.admin.ask("POST", "/api/v1/tenants", {"name": "acme"}).status == 204
    browser = Browser(world)
    assert browser.sign_in("alice").status == 303
    me = world.client(browser.cookies["server"]["__Host-firmament"]).ask("GET", "/api/v1/me").json
    assert (me["name"], me["role"], me["tenant"]) == ("alice", "operator", "acme")
    assert "alice" not in {one["name"] for one in world.admin.ask("GET", "/api/v1/people").json["people"]}
    assert code_of(Browser(world).sign_in("both")) == "access/outside-sign-in"
    assert world.admin.ask("DELETE", "/api/v1/tenants/acme").status == 204
    assert code_of(Browser(world).sign_in("alice")) == "access/outside-sign-in"


def test_a_person_who_is_refused_reads_it_where_the_sign_in_began(world):
    browser = Browser(world)
    path = browser.agree(browser.start(), "nobody")
    headers = {"accept": "text/html", "cookie": f"{COOKIE}={browser.cookies['server'][COOKIE]}"}
    answer = world.client("").ask("GET", f"/api/{path}", headers=headers)
    assert (answer.status, answer.headers["location"]) == (303, "/login?outside=refused")
    page = world.client("").ask("GET", answer.headers["location"]).body.decode()
    assert "answer was refused" in page


def test_a_name_of_somebody_here_is_not_taken_over(world):
    answer = world.admin.ask("POST", "/api/v1/people", {"name": "vera", "role": "admin", "password": "x" * 12})
    assert answer.status == 201
    assert code_of(Browser(world).sign_in("vera")) == "access/outside-sign-in"


def test_an_answer_counts_once_and_in_the_browser_that_asked(world):
    browser, other = Browser(world), Browser(world)
    path = browser.agree(browser.start(), "olivia")
    other.start()
    assert code_of(other.finish(path)) == "access/outside-sign-in"  # another browser's state
    state = browser.cookies["server"][COOKIE]
    assert browser.finish(path).status == 303
    assert code_of(browser.finish(path)) == "access/outside-sign-in"
    browser.cookies["server"][COOKIE] = state
    assert code_of(browser.finish(path)) == "access/outside-sign-in"  # the state was used up


def test_a_code_of_another_sign_in_is_refused_by_pkce(world):
    thief, victim = Browser(world), Browser(world)
    stolen = re.search(r"code=([^&]+)", victim.agree(victim.start(), "olivia"))[1]
    thief.start()
    state = thief.cookies["server"][COOKIE]
    answer = thief.finish(f"v1/outside/callback?code={stolen}&state={state}")
    assert (answer.status, code_of(answer)) == (401, "access/outside-sign-in")


def test_whoever_is_disabled_here_stays_out(world):
    assert Browser(world).sign_in("olivia").status == 303
    assert world.admin.ask("DELETE", "/api/v1/people/olivia").status == 204
    assert code_of(Browser(world).sign_in("olivia")) == "access/outside-sign-in"


# --- the hostile one -----------------------------------------------------------------------

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NONCE = "the nonce"


class Hostile:
    """An HTTPS server that answers as a provider would, but for one lie."""

    def __init__(self, certificate):
        self.key, self.other = (RSAKey.generate_key(2048, {"kid": "k", "use": "sig"}) for _ in range(2))
        self.changes = {}
        self.configuration = {}
        self.token = None
        self.status = 200
        self.padding = ""
        hostile = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = json.dumps(hostile.says(self.path)).encode()
                self.send_response(hostile.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.answer()

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.answer()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.issuer = f"https://localhost:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def says(self, path):
        if path.endswith("openid-configuration"):
            return {
                "issuer": self.issuer,
                "authorization_endpoint": self.issuer + "/auth",
                "token_endpoint": self.issuer + "/token",
                "jwks_uri": self.issuer + "/keys",
                **self.configuration,
            }
        if path == "/keys":
            return {"keys": [self.key.as_dict(private=False)], "padding": self.padding}
        return {"id_token": self.token if self.token is not None else self.sign()}

    def claims(self):
        given = {
            "iss": self.issuer,
            "aud": CLIENT,
            "sub": "1",
            "nonce": NONCE,
            "exp": int(NOW.timestamp()) + 300,
            "iat": int(NOW.timestamp()),
            "groups": ["fleet-viewers"],
            "preferred_username": "Vera Example",
        }
        return {key: value for key, value in {**given, **self.changes}.items() if value is not None}

    def sign(self, key=None, algorithm="RS256"):
        return jwt.encode({"alg": algorithm, "kid": "k"}, self.claims(), key or self.key, algorithms=[algorithm])

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hostile(certificate):
    made = Hostile(certificate)
    yield made
    made.close()


def identify(hostile, certificate):
    settings = ServerSettings(
        oidc_issuer=hostile.issuer, oidc_client_id=CLIENT, oidc_ca=str(certificate / "cert.pem"), oidc_roles=ROLES
    )
    return Provider(settings).identify(code="c", verifier="v", nonce=NONCE, now=NOW)


def test_an_honest_answer_of_it_is_taken(hostile, certificate):
    identity = identify(hostile, certificate)
    assert (identity.subject, identity.name, identity.role) == ("1", "vera-example", Role.VIEWER)
    hostile.changes = {"groups": ["fleet-viewers", "fleet-operators"]}
    assert identify(hostile, certificate).role is Role.OPERATOR


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://elsewhere.example"},
        {"aud": "somebody-else"},
        {"aud": [CLIENT, "other"], "azp": "other"},
        {"nonce": "another"},
        {"nonce": None},
        {"exp": int(NOW.timestamp()) - 61},
        {"exp": None},
        {"sub": None},
        {"groups": None},
        {"groups": "admin"},
        {"groups": {"fleet-operators": True}},
    ],
    ids=str,
)
def test_a_token_that_says_something_wrong_is_refused(hostile, certificate, changes):
    hostile.changes = changes
    with pytest.raises(OutsideSignInError):
        identify(hostile, certificate)


def assembled(hostile, algorithm, sign):
    parts = (json.dumps(part).encode() for part in ({"alg": algorithm, "kid": "k"}, hostile.claims()))
    text = ".".join(encoded(part) for part in parts)
    return f"{text}.{encoded(sign(text.encode()))}"


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(hostile):
    return assembled(hostile, "none", lambda _: b"")


def shared(hostile):
    """The public key taken as a shared secret: algorithm confusion."""
    return assembled(hostile, "HS256", lambda text: hmac.digest(hostile.key.as_pem(private=False), text, "sha256"))


@pytest.mark.parametrize(
    "forge",
    [unsigned, shared, lambda h: h.sign(h.other), lambda h: h.sign()[:-8] + "AAAAAAAA", lambda _: "x.y", lambda _: 7],
    ids=["none", "hs256", "other-key", "damaged", "no-token", "no-text"],
)
def test_a_token_that_the_provider_did_not_sign_is_refused(hostile, certificate, forge):
    hostile.token = forge(hostile)
    with pytest.raises(OutsideSignInError):
        identify(hostile, certificate)


def test_a_provider_that_misbehaves_is_refused(hostile, certificate):
    for configuration in ({"issuer": "https://elsewhere.example"}, {"token_endpoint": "http://localhost/token"}):
        hostile.configuration = configuration
        with pytest.raises(OutsideSignInError):
            identify(hostile, certificate)
    hostile.configuration = {}
    hostile.padding = "x" * 300_000
    with pytest.raises(OutsideSignInError):
        identify(hostile, certificate)
    hostile.padding, hostile.status = "", 500
    with pytest.raises(OutsideSignInError):
        identify(hostile, certificate)


def test_a_provider_with_a_strange_certificate_is_not_asked(hostile, tmp_path):
    settings = ServerSettings(oidc_issuer=hostile.issuer, oidc_client_id=CLIENT, oidc_roles=ROLES)
    with pytest.raises(OutsideSignInError):
        Provider(settings).identify(code="c", verifier="v", nonce=NONCE, now=NOW)


def test_the_table_of_roles_is_explicit():
    assert role_table(("a=b=viewer", "c=acme/admin")) == {"a=b": Grant(Role.VIEWER), "c": Grant(Role.ADMIN, "acme")}
    for entry in ("viewer", "=viewer", "group=emperor"):
        with pytest.raises(SettingError):
            role_table((entry,))
