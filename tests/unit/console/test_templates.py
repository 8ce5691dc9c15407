"""Promises about the console's files: nothing inline, nothing unescaped, nothing from elsewhere."""

import re
from pathlib import Path

import pytest

import firmament.console
from firmament.console import guard
from firmament.console.render import Assets, Templates

FOLDER = Path(firmament.console.__file__).parent
TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_escapes_everything_and_has_nothing_inline(path):
    text = path.read_text()
    assert not re.search(r"\|\s*safe\b|autoescape\s+false|Markup", text)
    assert not re.search(r"\sstyle=|<style|\son[a-z]+=|javascript:", text)
    for script in re.findall(r"<script[^>]*>", text):
        assert "src=" in script
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)


def test_the_policy_allows_no_inline_script_or_style():
    for word in ("unsafe", "http", "*", "data: 'self'"):
        assert word not in guard.CONTENT_SECURITY_POLICY
    assert "require-trusted-types-for 'script'; trusted-types firmament" in guard.CONTENT_SECURITY_POLICY


def test_the_script_is_small_and_builds_no_code_from_text():
    script = (FOLDER / "static/console.js").read_text()
    assert len(script) < 16_000
    assert not re.search(r"\beval\(|new Function|innerHTML|outerHTML|document\.write|import\(", script)


def test_assets_are_named_by_their_bytes():
    assets = Assets()
    address = assets.url("console.js")
    kind, data = assets.find(address.removeprefix("/static/"))
    assert re.fullmatch(r"/static/console\.[0-9a-f]{12}\.js", address)
    assert kind.endswith("javascript")
    assert data == (FOLDER / "static/console.js").read_bytes()
    assert assets.find("console.js") is None


def test_what_a_device_sends_is_text_on_the_page():
    drawn = Templates(Assets())._environment.from_string("{{ it }}").render(it='<script>"&')
    assert drawn == "&lt;script&gt;&#34;&amp;"
