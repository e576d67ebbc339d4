"""Many seeds over a few processes: in order, with progress, and never a hang."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from typing import Protocol

from hapo_ros.episodes.writer import EpisodeWriteError

LIMIT_S = 900.0  # longest wait for any worker to finish a seed


class WorkerError(RuntimeError):
    """A seed could not be run; the sentence names it."""


class Setup(Protocol):
    """What a worker does. Picklable; ``start`` is called once in each worker."""

    def start(self) -> Callable[[int], object]:
        """Build what is expensive, write nothing; returns the function that runs one seed."""

    def tidy(self, seed: int) -> None:
        """Remove what is half-done of a seed: it failed, or the run is ended before its time."""


def run_seeds(
    setup: Setup,
    seeds: Sequence[int],
    *,
    workers: int = 1,
    progress: Callable[[int, int, object], None] | None = None,
    limit_s: float = LIMIT_S,
) -> list:
    """Run every seed once; returns the results in the order of ``seeds``.

    workers: processes (spawned); 0 runs everything in this one. progress: called here with (done,
    total, result) after each seed, in the order in which they finish. Raises WorkerError, with
    every worker ended, where a seed fails, a worker dies, or none finishes one within ``limit_s``.
    """
    seeds = [int(seed) for seed in seeds]
    if len(set(seeds)) != len(seeds):
        raise ValueError("A seed is named twice; each is run once.")
    tell = progress or (lambda done, total, result: None)
    results: dict[int, object] = {}

    def finished(seed: int, result) -> None:
        results[seed] = result
        tell(len(results), len(seeds), result)

    if workers == 0:
        run = setup.start()
        for seed in seeds:
            with _tidied(setup, seed):
                result = run(seed)
            finished(seed, result)
    elif seeds:
        _run_spawned(setup, seeds, min(workers, len(seeds)), finished, limit_s)
    return [results[seed] for seed in seeds]


def _run_spawned(setup, seeds, workers, finished, limit_s) -> None:
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # else the first start does it, and unblocks SIGINT
    waiting = list(reversed(seeds))
    processes, running = [], {}  # connection -> (process, seed)
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(setup, theirs), daemon=True)
            with _without_interrupts():
                process.start()
                theirs.close()
                processes.append(process)
                running[ours] = process, waiting.pop()
            ours.send(running[ours][1])
        while running:
            ready = connection.wait(list(running), timeout=limit_s)
            if not ready:
                late = ", ".join(str(seed) for _, seed in running.values())
                raise WorkerError(
                    f"No worker finished within {limit_s:g} s; running were seeds {late}. "
                    "The run was ended."
                )
            for ours in ready:
                process, seed = running[ours]
                finished(seed, _receive(ours, process, seed))
                if waiting:
                    running[ours] = process, waiting.pop()
                    ours.send(running[ours][1])
                else:
                    del running[ours]
                    ours.close()
    finally:
        for ours in running:
            ours.close()
        if running:  # after an error: whatever they are doing is of no use
            for process in processes:
                process.terminate()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _tidied(setup: Setup, seed: int) -> Iterator[None]:
    """Nothing half-done is left of a seed that can be run again. What a full disk or an episode
    that exists already stopped is kept: its error says so."""
    try:
        yield
    except EpisodeWriteError:
        raise
    except BaseException:
        setup.tidy(seed)
        raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started here never hears a terminal's Ctrl-C, not even while Python starts in it:
    its parent ends it. This one hears it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(ours, process, seed: int):
    try:
        ok, result = ours.recv()
    except (EOFError, ConnectionError) as error:
        process.join(10)
        raise WorkerError(
            f"The worker that ran seed {seed} died (exit code {process.exitcode}). The run was "
            "ended. A negative code is a signal: -9 is often too little memory, use fewer workers."
        ) from error
    if not ok:
        raise WorkerError(f"Seed {seed} failed in its worker. The run was ended. {result}")
    return result


def _work(setup, theirs) -> None:
    seed = None

    def end(number: int, _frame) -> None:
        # No exception: libraries that are being called take any for a failure of their own.
        setup.tidy(seed)
        os._exit(128 + number)

    try:
        seed = theirs.recv()
        run = setup.start()
        signal.signal(signal.SIGTERM, end)
        while True:
            with _tidied(setup, seed):
                result = run(seed)
            theirs.send((True, result))
            seed = theirs.recv()
    except (EOFError, ConnectionError):
        return  # the parent has no more work, or is gone
    except (ValueError, OSError, EpisodeWriteError) as error:
        _give_up(theirs, str(error))  # a sentence
    except Exception:  # not swallowed, whatever it is: the parent ends the run with all of it
        _give_up(theirs, "\n" + traceback.format_exc())


def _give_up(theirs, why: str) -> None:
    # The parent ends this process as soon as it hears of it; what there was to tidy up is.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    theirs.send((False, why))
