"""Two agents at once (case 50): the second one is told who the first is."""

import os
import subprocess
import sys

import pytest

from firmament.agent.lock import LOCK_NAME, InstanceLock
from firmament.errors import FileError, LockedError


def test_the_second_is_refused_and_told_the_first_ones_pid(tmp_path):
    with InstanceLock(tmp_path):
        with pytest.raises(LockedError) as caught:
            InstanceLock(tmp_path).acquire()
        assert caught.value.facts["pid"] == str(os.getpid())
        assert (tmp_path / LOCK_NAME).stat().st_mode & 0o777 == 0o600
    with InstanceLock(tmp_path):
        pass


def test_a_holder_that_dies_leaves_nothing_behind(tmp_path):
    code = (
        "import sys, os; from pathlib import Path; from firmament.agent.lock import InstanceLock\n"
        "InstanceLock(Path(sys.argv[1])).acquire(); print(os.getpid(), flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        pid = holder.stdout.readline().strip()
        with pytest.raises(LockedError) as caught:
            InstanceLock(tmp_path).acquire()
        assert caught.value.facts["pid"] == pid
    finally:
        holder.kill()
        holder.communicate()
    InstanceLock(tmp_path).acquire().release()


def test_releasing_twice_is_fine_and_a_missing_directory_is_named(tmp_path):
    lock = InstanceLock(tmp_path).acquire()
    lock.release()
    lock.release()
    with pytest.raises(FileError):
        InstanceLock(tmp_path / "missing").acquire()
