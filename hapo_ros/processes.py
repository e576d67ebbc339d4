"""Child processes that end with their parent, and are stopped with a deadline."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def start(arguments: Sequence[str], niceness: int = 0, **options) -> subprocess.Popen:
    """Start a child in a session of its own, so that a terminal's Ctrl-C reaches only the parent.

    The kernel terminates it when the parent dies, however that happens. niceness: 0 to 19, how much
    it gives way to others. options: as for Popen.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def before_it_begins():
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        if niceness:
            os.nice(niceness)
            # Where the kernel groups by session, niceness counts only within one.
            with suppress(OSError), open("/proc/self/autogroup", "w") as group:
                group.write(str(niceness))

    return subprocess.Popen(
        list(arguments), start_new_session=True, preexec_fn=before_it_begins, **options
    )


def stop(process: subprocess.Popen, grace_s: float) -> int:
    """SIGTERM, then SIGKILL to the child's whole group after ``grace_s``; returns its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    code = process.wait()
    kill_group(process)  # what it started and left
    return code


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL the child and whatever it started in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
