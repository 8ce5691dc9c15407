"""What every test may rely on."""

import os
import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings
from support.databases import connection, database_kind, target
from support.documents import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown
from support.swift import swift

__all__ = (
    "connection",
    "database_kind",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
    "swift",
    "target",
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts so what it puts in the background, and every program of a test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Hundreds of tests start processes of Firmament, and each would compile all of it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

BROWSER_TESTS = Path(__file__).parent / "console"


def pytest_collection_modifyitems(items):
    """Put the tests with a browser last: its event loop stays in the process, where `asyncio.run` then refuses to start."""
    items.sort(key=lambda item: item.path.is_relative_to(BROWSER_TESTS))


# Examples are few enough for the whole suite to stay quick, and no deadline: the machine may be busy.
settings.register_profile(
    "house", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("deep", parent=settings.get_profile("house"), max_examples=2000)
settings.load_profile("house")
