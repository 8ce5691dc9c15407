"""What every test may rely on."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.databases import connection, database_kind, pytest_generate_tests, target
from support.documents import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown
from support.swift import swift

__all__ = (
    "connection",
    "database_kind",
    "pytest_generate_tests",
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

TESTS = Path(__file__).parent
LONGEST = (
    "console",
    "e2e/test_demo.py",
    "swift",
    "unit/payload/test_memory.py",
    "e2e/test_chaos.py",
)
"""They begin the run, so that all workers end together; the others follow in the order of their names."""
SHARING = {
    "e2e/test_server_nginx.py": "swift",
    "e2e/test_server_store.py": "swift",
    "unit/server/test_payload_stores.py": "swift",
}


def unit_of(path: Path) -> str:
    """What one worker does at a stretch: a file, or files that share what is slow to start."""
    inside = path.relative_to(TESTS)
    return "console" if inside.parts[0] == "console" else SHARING.get(inside.as_posix(), inside.as_posix())


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(unit_of(item.path), len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are processors: a test waits for something a third of its time."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deal out units: what a module or the console starts is started once."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return unit_of(config.rootpath / nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return Units(config, log)


# Examples are few enough for the whole suite to stay quick, and no deadline: the machine may be busy.
settings.register_profile(
    "house", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("deep", parent=settings.get_profile("house"), max_examples=2000)
settings.load_profile("house")
