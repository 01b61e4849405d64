"""Locks of folders: one run at a time, and none after its process is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.lock import folder_lock

HOLDER = """
import os, sys, time
from monai_anomaly.io.lock import folder_lock
with folder_lock(sys.argv[1], shared=len(sys.argv) > 2):
    {body}
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path, *shared: str, body: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    program = [sys.executable, "-c", HOLDER.format(body=body), str(folder), *shared]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_with_the_first_s_host_process_and_start(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(InputError) as caught, folder_lock(tmp_path):
            pass
        line = str(caught.value)
        assert f"another run writes into it (process {process.pid} on {socket.gethostname()}, since 20" in line
        with pytest.raises(InputError), folder_lock(tmp_path, shared=True):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with folder_lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()


@pytest.mark.slow
def test_a_killed_process_s_workers_are_waited_for(tmp_path: Path) -> None:
    # a fork holds the file for a second after its parent is gone
    with holder(tmp_path, body="os.fork() or (time.sleep(2), os._exit(0))") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with folder_lock(tmp_path):
            pass


def test_shared_locks_share_with_each_other_alone(tmp_path: Path) -> None:
    with holder(tmp_path, "shared"):
        with folder_lock(tmp_path, shared=True):
            pass
        with pytest.raises(InputError), folder_lock(tmp_path):
            pass
