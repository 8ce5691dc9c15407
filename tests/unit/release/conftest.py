"""Workspaces for the tests of the release tool."""

import pytest
from support import authoring


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch):
    authoring.cheap_scrypt(monkeypatch)


@pytest.fixture
def workspace(tmp_path):
    return authoring.make_workspace(tmp_path / "ws")


@pytest.fixture
def tree(tmp_path):
    return authoring.make_tree(tmp_path / "app", x="1")
