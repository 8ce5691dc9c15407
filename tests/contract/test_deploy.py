"""The files in deploy/: each setting, path, port and command in them is one that the product has."""

import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import click
import pytest
import yaml

from firmament import __version__
from firmament.cli.main import program as cli
from firmament.server.layout import Layout
from firmament.server.settings import ENVIRONMENT_PREFIX, ServerSettings, read_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ROOT / "src/firmament/server/units"
TEXTS = {str(path.relative_to(DEPLOY)): path.read_text() for path in DEPLOY.rglob("*") if path.is_file()}
NAMES = {field.name for field in fields(ServerSettings)}
PORT = ServerSettings().port
HOME = "/var/lib/firmament-server"


def documents(name):
    return [one for one in yaml.safe_load_all(TEXTS[name]) if one is not None]


def walk(value):
    """Every mapping in a document, however deep."""
    if isinstance(value, dict):
        yield value
        for one in value.values():
            yield from walk(one)
    elif isinstance(value, list):
        for one in value:
            yield from walk(one)


def require_command(words):
    """Fail unless these words are a command of ours with options that it has."""
    command, context = cli, click.Context(cli)
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(context, rest.pop(0))
        assert found is not None, words
        command, context = found, click.Context(found, parent=context)
    known = {option for parameter in command.params for option in parameter.opts}
    for word in rest:
        assert not word.startswith("-") or word in known, words


def test_the_folder_holds_what_it_should():
    assert {name.partition("/")[0] for name in TEXTS} == {"compose", "kubernetes", "nginx", "systemd", "README.md"}


def test_every_setting_in_the_environment_exists_and_together_they_are_accepted(tmp_path):
    (tmp_path / "firmament.toml").write_text("[server]\n")
    for name, text in TEXTS.items():
        found = set(re.findall(rf"{ENVIRONMENT_PREFIX}([A-Z0-9_]+)", text)) - {"DIRECTORY"}
        assert {one.lower() for one in found} <= NAMES, name
    compose = documents("compose/compose.yaml")[0]["services"]["server"]["environment"]
    kubernetes = next(one for one in documents("kubernetes/firmament.yaml") if one["kind"] == "ConfigMap")["data"]
    unit = dict(re.findall(r"(?m)^(\w+)=(.*)$", TEXTS["systemd/server.env"]))
    for environment in (compose, kubernetes, unit):
        settings = read_settings(tmp_path / "firmament.toml", environment)
        assert settings.port == PORT
        assert settings.database.startswith("postgresql://")


def test_every_command_is_one_of_ours():
    compose = documents("compose/compose.yaml")[0]["services"]
    require_command(compose["server"]["command"])
    require_command(compose["init"]["command"])
    for line in re.findall(r"(?m)^#\s+docker compose exec server firmament (.*)$", TEXTS["compose/compose.yaml"]):
        require_command(shlex.split(line))
    commands = re.findall(r"\bfirmament ((?:server|operator) [a-z]+[^\n#;|&]*)", TEXTS["kubernetes/firmament.yaml"])
    assert commands
    for line in commands:
        require_command(shlex.split(line))
    for container in walk(documents("kubernetes/firmament.yaml")):
        if isinstance(container.get("args"), list):
            require_command(container["args"])
    for name, text in TEXTS.items():
        if name.startswith("systemd/"):
            for line in re.findall(r"(?m)^ExecStart=/usr/bin/firmament (.*)$", text):
                require_command(shlex.split(line))
    entry = re.findall(r"(?m)^(?:ENTRYPOINT|CMD) (\[.*\])$", TEXTS["compose/Dockerfile"])
    assert yaml.safe_load(entry[0]) == ["firmament"]
    require_command(yaml.safe_load(entry[1]))


def test_paths_and_ports_are_those_of_the_product():
    layout = Layout(Path(HOME))
    nginx = TEXTS["nginx/firmament.conf"]
    for path in (layout.ca, layout.tls / "server.pem", layout.tls / "server.key", layout.device_ca / "ca.pem"):
        assert f" {path};" in nginx
    assert f"alias {layout.targets}/;" in nginx
    assert f"server 127.0.0.1:{PORT};" in nginx
    for path in re.findall(rf"{HOME}/[\w./-]+", nginx):
        assert Path(path).parts[4] in {"tls", "device-ca", "repository"}, path
    prefix = documents("compose/compose.yaml")[0]["services"]["server"]["environment"]["FIRMAMENT_SERVER_FRONT_PREFIX"]
    assert re.findall(r"location (/_\w+/)(?:targets|store)/", nginx) == [prefix, prefix]
    kubernetes = documents("kubernetes/firmament.yaml")
    assert {one["containerPort"] for one in walk(kubernetes) if "containerPort" in one} == {PORT}
    assert f"EXPOSE {PORT}\n" in TEXTS["compose/Dockerfile"]
    unit = (UNITS / "firmament-server.service").read_text()
    assert f"WorkingDirectory={HOME}\n" in unit
    probes = {one["httpGet"]["path"] for one in walk(kubernetes) if "httpGet" in one}
    operator_api = (ROOT / "docs/reference/operator-api.md").read_text()
    assert all(f"`GET {path}`" in operator_api for path in probes)


def test_all_units_take_their_settings_from_one_file():
    """A collection with other settings than the server's would decide from another database."""
    for name, text in TEXTS.items():
        if name.endswith((".service", "scale.conf")):
            assert re.findall("(?m)^Environment.*=-?(.*)$", text) == ["/etc/firmament/server.env"], name
    workloads = [one for one in walk(documents("kubernetes/firmament.yaml")) if "args" in one]
    assert len({str(one["envFrom"]) for one in workloads}) == 1


def test_images_are_pinned_and_nothing_runs_as_root():
    texts = (*TEXTS.values(),)
    images = re.findall(r"(?m)(?:image:\s*(?:&\w+ )?|^FROM )([\w./-]+(?::[\w.-]+)?)$", "\n".join(texts))
    assert len(images) >= 5
    for image in images:
        _, _, tag = image.partition(":")
        assert re.match(r"\d+\.\d+", tag), image
    for name in ("compose/compose.yaml", "kubernetes/firmament.yaml"):
        assert f"firmament-server:{__version__.split('.dev')[0]}" in TEXTS[name]
    assert re.search(r"(?m)^USER [1-9]\d*$", TEXTS["compose/Dockerfile"])
    services = documents("compose/compose.yaml")[0]["services"]
    for name in ("server", "init"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    pods = [one for one in walk(documents("kubernetes/firmament.yaml")) if "containers" in one]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        claims = {volume["name"] for volume in pod["volumes"]} | {"data"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= claims
    (server,) = [one for pod in pods for one in pod["containers"] if one["name"] == "server"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= server.keys()


def test_secrets_are_files_and_none_is_in_these():
    """A value that is a secret has a setting that names its file; no password stands in a file of ours."""
    for name, text in TEXTS.items():
        for setting in re.findall(rf"{ENVIRONMENT_PREFIX}([A-Z0-9_]*(?:PASSWORD|SECRET|KEY)[A-Z0-9_]*)", text):
            assert setting.endswith("_FILE"), (name, setting)
        assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), name
    compose = documents("compose/compose.yaml")[0]
    used = {
        one if isinstance(one, str) else one["source"]
        for service in compose["services"].values()
        for one in service.get("secrets", [])
    }
    assert used == {*compose["secrets"]}


@pytest.mark.parametrize("name", sorted(name for name in TEXTS if name.endswith((".service", ".timer"))))
def test_units_are_ones_that_systemd_takes(name, tmp_path):
    # The programs are not installed on this machine: one that is stands in for them.
    for path in [*(DEPLOY / "systemd").glob("firmament-*"), UNITS / "firmament-server.service"]:
        text = path.read_text().replace("/usr/bin/firmament ", "/bin/true ")
        text = re.sub("(?m)^(User|Group)=.*$", r"\1=root", text)
        drop_in = path.suffix == ".conf"
        place = tmp_path / ("firmament-server.service.d/scale.conf" if drop_in else path.name)
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    program = shutil.which("systemd-analyze")
    assert program, "systemd is not installed: run `make packages`"
    told = subprocess.run(
        [program, "--man=no", "verify", f"./{Path(name).name}"],
        cwd=tmp_path,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in told.stderr.splitlines() if "firmament" in line]
    assert (told.returncode, lines) == (0, []), told.stderr
