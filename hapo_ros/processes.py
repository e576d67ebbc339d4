"""Child processes that end with their parent, and are stopped with a deadline."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def start(
    arguments: Sequence[str], niceness: int = 0, terminal: bool = False, **options
) -> subprocess.Popen:
    """Start a child in a process group of its own, so that Ctrl-C reaches only the parent.

    The kernel terminates it when the parent dies, however that happens. niceness: 0 to 19, how much
    it gives way to others. terminal: it reads the parent's terminal. options: as for Popen.

    It stays in the parent's session. Where the kernel shares processors out by session (autogroup),
    one that mostly sleeps and is alone in its session waits up to seconds on a busy machine: with
    two cores busy the arbiter's p99 at 100 Hz is 8 to 19 ms in the session, 400 to 2000 ms out of
    it (benchmarks/arbiter.py --busy 2). For the same reason a nice one needs a session: niceness
    counts only within one.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def before_it_begins():
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        if terminal or niceness:
            os.setsid()  # also: whoever is not in a terminal's foreground is stopped by reading it
        else:
            os.setpgid(0, 0)
        if niceness:
            os.nice(niceness)
            with suppress(OSError), open("/proc/self/autogroup", "w") as group:
                group.write(str(niceness))

    return subprocess.Popen(list(arguments), preexec_fn=before_it_begins, **options)


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
    """SIGKILL the child and whatever it started in its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
