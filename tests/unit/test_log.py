"""Logs: one line per event, fields as data, and no secrets whatever they hide in."""

import json
import logging
import sys

import pytest

from firmament.log import DROPPED, JsonFormatter, ReadableFormatter, clean, configure, logger

PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQ...\n-----END PRIVATE KEY-----"


@pytest.fixture
def lines(capsys):
    """Configure as a command does, and give back what reached stderr."""
    kept = logging.getLogger("firmament")
    before = (kept.handlers[:], kept.level, kept.propagate)

    def read():
        return capsys.readouterr().err.splitlines()

    def start(**options):
        configure(**options)
        return read

    yield start
    kept.handlers[:], kept.level, kept.propagate = before


def test_json_lines_when_nobody_looks(lines):
    read = lines()
    logger("agent.runner").bind(attempt_id="a-1").info("attempt.staged", slot="b", duration_s=12.5)
    (line,) = [json.loads(text) for text in read()]
    assert line.pop("at").startswith("20")
    assert line == {
        "level": "info",
        "part": "firmament.agent.runner",
        "event": "attempt.staged",
        "attempt_id": "a-1",
        "slot": "b",
        "duration_s": 12.5,
    }


def test_a_readable_line_on_a_terminal(lines):
    read = lines(json_lines=False)
    logger("agent").warning("attempt.refused", code="trust/rollback", message="two words", empty="")
    assert read()[0].endswith('warning agent attempt.refused code=trust/rollback message="two words" empty=""')


def test_levels(lines):
    read = lines(level="warning")
    log = logger("x")
    log.debug("no")
    log.info("no")
    log.warning("yes")
    log.error("yes")
    assert [json.loads(text)["level"] for text in read()] == ["warning", "error"]


def test_binding_does_not_change_the_original(lines):
    read = lines()
    log = logger("x")
    log.bind(device_id="d").bind(slot="a").info("one", slot="b")
    log.info("two")
    one, two = (json.loads(text) for text in read())
    assert (one["device_id"], one["slot"]) == ("d", "b")
    assert "device_id" not in two


@pytest.mark.parametrize(
    "fields",
    [
        {"password": "s3cret"},
        {"passphrase_file": "s3cret"},
        {"client_secret": "s3cret"},
        {"enrolment_token": "s3cret"},
        {"private_key": "s3cret"},
        {"cek": "s3cret"},
        {"user_pin": "s3cret"},
        {"Authorization": "s3cret"},
        {"Set-Cookie": "s3cret"},
        {"nonce": "s3cret"},
        {"headers": {"authorization": "s3cret", "accept": "x"}},
        {"many": [{"token": "s3cret"}]},
        {"text": f"oops {PEM} s3cret"},
        {"data": f"{PEM} s3cret".encode()},
        {"error": ValueError(f"{PEM} s3cret")},
        {"header": "Bearer s3cret"},
        {"deep": [["x", {"y": ("authorization: bearer s3cret",)}]]},
    ],
)
def test_secrets_never_reach_a_handler(lines, fields):
    for as_json in (True, False):
        read = lines(json_lines=as_json)
        logger("x").info("event", **fields)
        written = "\n".join(read())
        assert "s3cret" not in written
        assert DROPPED in written


def test_what_is_no_secret_stays():
    fields = {"keyid": "ab" * 32, "digest": "sha256:00", "slot": "a", "n": 3, "none": None, "ok": True, "pinned": "x"}
    assert clean(fields) == fields


@pytest.mark.parametrize("formatter", [JsonFormatter(), ReadableFormatter()])
def test_a_value_from_outside_cannot_forge_a_line_or_a_field(formatter):
    record = logging.LogRecord("firmament.x", logging.INFO, "", 0, "event", None, None)
    record.fields = {"version": "1\n12:00:00 error forged\x1b[2J\u2028", "level": "error", "a": 'b" level="error'}
    line = formatter.format(record)
    assert len(line.splitlines()) == 1 or isinstance(formatter, JsonFormatter)
    assert "\n" not in line
    assert "\x1b" not in line
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["level"] == "info"
        assert json.loads(line)["version"] == record.fields["version"]


@pytest.mark.parametrize("formatter", [JsonFormatter(), ReadableFormatter()])
def test_an_exception_is_kept(formatter):
    try:
        raise ValueError("the cause")  # noqa: TRY301
    except ValueError:
        record = logging.LogRecord("firmament.x", logging.ERROR, "", 0, "event", None, sys.exc_info())
    assert "the cause" in formatter.format(record)


def test_importing_configures_nothing():
    assert not logging.getLogger("firmament.some.part").handlers
