"""``hapo ...``: the same core as the nodes, from the command line.

Exit codes: 0 clean, 1 error, 3 finished with loss. Handlers are thin: they parse, call, print.
"""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path

from hapo_ros import jsonlines
from hapo_ros.progress import progress

EXIT_OK, EXIT_ERROR, EXIT_LOSS = 0, 1, 3
EPILOG = "Exit codes: 0 clean, 1 error, 3 finished with loss (skipped bags, too few takeovers)."


def main(argv: Iterable[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else [str(word) for word in argv]
    arguments = _parser().parse_args(words)
    arguments.words = words
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("Interrupted. What was finished is kept.", file=sys.stderr)
        return EXIT_ERROR
    except _expected() as error:
        _complain(arguments, error)
        return EXIT_ERROR


def _complain(arguments, error: Exception) -> None:
    with suppress(OSError):  # the terminal may be what was lost
        print(f"hapo {arguments.command}: {error}", file=sys.stderr, flush=True)


def _expected() -> tuple[type[Exception], ...]:
    """Errors that are sentences for the user; anything else is a bug and shows where."""
    from hapo_ros.devices import DeviceLost
    from hapo_ros.episodes import BadEpisode, EpisodeWriteError, RecoveryError
    from hapo_ros.episodes.reviews import ReviewError
    from hapo_ros.gateway_client import GatewayError
    from hapo_ros.sim.workers import WorkerError
    from hapo_ros.supervisor import DeploymentError

    known = [OSError, ValueError, BadEpisode, EpisodeWriteError, RecoveryError, DeploymentError]
    known += [WorkerError, GatewayError, DeviceLost, ReviewError]
    if "hapo_ros.learning.loop" in sys.modules:
        known += [sys.modules["hapo_ros.learning.loop"].NotTrained]
    if formats := sys.modules.get("hapo_ros.episodes.formats"):
        known += [formats.BadSource, formats.NotInstalled]
    return tuple(known)


# Commands


def _demo(arguments) -> int:
    from hapo_ros.demo import DemoOptions, run_demo

    names = [field.name for field in fields(DemoOptions)]
    options = DemoOptions(**{name: getattr(arguments, name) for name in names})
    return run_demo(Path(arguments.output), options)


def _deploy(arguments) -> int:
    import time

    from hapo_ros.deployment import check_devices, describe, parse
    from hapo_ros.supervisor import Supervisor

    deployment = describe(parse(arguments.arguments))
    check_devices(deployment)
    with _stop_flag() as stopped, Supervisor(deployment) as supervisor:
        supervisor.start()
        names = ", ".join(spec.name for spec in deployment.nodes)
        print(f"Running {names}. Ctrl-C ends it.", flush=True)
        while not stopped() and not supervisor.done:
            supervisor.watch()
            time.sleep(0.05)
        for name in sorted(supervisor.done):
            print(f"{name} is done. The run ends.", flush=True)
    return EXIT_OK


def _console(arguments) -> int:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError(
            "It needs a terminal, and this is none. Nothing was asked of the deployment. From a "
            "script, call the services."
        )
    from hapo_ros.console.app import run
    from hapo_ros.console.link import Link

    with Link() as link:
        code, text = run(link, arguments.task, arguments.instruction, arguments.seed)
    print(text)
    return code


def _collect(arguments) -> int:
    from hapo_ros.sim.environment import Disturbance
    from hapo_ros.sim.rollout import collect

    seeds = _seeds(arguments)
    options = {}
    if arguments.policy is None:
        options = {"cameras": _cameras(arguments), "object_state": arguments.inputs != "images"}
        if not arguments.no_disturbance:
            options["disturbance"] = Disturbance()
    with progress("collecting", len(seeds), arguments.json) as advance:
        episodes = collect(
            arguments.output,
            arguments.task,
            seeds,
            checkpoint=arguments.policy,
            workers=arguments.workers,
            progress=lambda done, total, result: advance(done),
            **options,
        )
    deployed = arguments.policy is not None
    _report(
        arguments,
        {
            "bags": str(Path(arguments.output).resolve()),
            "source": "deployment" if deployed else "demonstration",
            "episodes": len(episodes),
            "successes": sum(episode.success for episode in episodes),
            "steps": sum(episode.steps for episode in episodes),
            "takeovers": sum(episode.takeovers for episode in episodes) if deployed else None,
        },
    )
    return EXIT_OK


def _cameras(arguments) -> dict[str, list[int]]:
    if arguments.inputs == "state":
        return {}
    return {name: [arguments.image_size] * 2 for name in arguments.cameras.split(",") if name}


def _train(arguments) -> int:
    from hapo_ros.learning.trainer import train_bc

    return _learn(
        arguments,
        lambda **options: train_bc(
            arguments.bags, _settings(arguments), arguments.output, **options
        ),
    )


def _optimize(arguments) -> int:
    from hapo_ros.learning.trainer import optimize

    return _learn(
        arguments,
        lambda **options: optimize(
            arguments.bags,
            arguments.base,
            arguments.method,
            _settings(arguments),
            arguments.output,
            reference_cache=arguments.reference_cache,
            **options,
        ),
    )


def _learn(arguments, train: Callable) -> int:
    """Run a training with its progress; SIGTERM and Ctrl-C cancel it, to be resumed. Of several
    ranks the first alone says something."""
    # Waiting threads of a busy machine would otherwise spin: a step took up to ten times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from hapo_ros.learning.parallel import started

    with _stop_flag() as stopped, started() as ranks:
        try:
            with progress("training", 1, arguments.json or not ranks.first) as advance:
                trained = train(
                    progress=_print_json if arguments.json else partial(_show_training, advance),
                    cancelled=stopped,
                    resume=arguments.resume,
                    command=_as_given(arguments, ranks),
                    ranks=ranks,
                )
        except _expected() as error:
            if arguments.json and ranks.first:
                _print_json({"text": str(error)})
            elif ranks.first:
                _complain(arguments, error)
            return EXIT_ERROR
        if ranks.first:
            _report_training(arguments, trained)
    return EXIT_LOSS if trained.skipped else EXIT_OK


def _as_given(arguments, ranks) -> str:
    """The command that was given, as it can be given again."""
    start = ["hapo"]
    if ranks.size > 1:
        here = os.environ.get("LOCAL_WORLD_SIZE", str(ranks.size))
        start = ["torchrun", "--nproc-per-node", here, "-m", "hapo_ros.cli"]
    return shlex.join([*start, *arguments.words])


def _report_training(arguments, trained) -> None:
    report = {
        "checkpoint": str(trained.checkpoint.resolve()),
        "version": trained.version,
        "metrics": trained.metrics,
        "notes": trained.notes,
        "skipped": trained.skipped,
    }
    _report(arguments, report | ({"text": _in_words(trained)} if arguments.json else {}))


def _in_words(trained) -> str:
    """All of it as text: the optimizer node gives it to people who see nothing else."""
    said = [f"Checkpoint {trained.version} is in {trained.checkpoint.resolve()}.", *trained.notes]
    if trained.skipped:
        count = len(trained.skipped)
        said.append(f"{count} {'bag was' if count == 1 else 'bags were'} skipped:")
    return " ".join([*said, *trained.skipped])


def _show_training(advance: Callable, said: dict) -> None:
    text = f"loss {said['loss']:.4f}"
    if not sys.stderr.isatty():  # where there is a bar, it has the time that is left
        text += f", {said['time_left_s'] / 60:.1f} min left"
    advance(said["step"], text, said["total"])


def _settings(arguments) -> dict:
    try:
        settings = json.loads(arguments.settings)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError("--settings must be a JSON object, such as '{\"steps\": 500}'.")
    for word in arguments.set:
        name, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"--set {word!r} is not of the form name=value.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    if getattr(arguments, "allow_missing_group", False):  # of hapo optimize alone
        settings["allow_missing_group"] = True
    return settings


def _promote(arguments) -> int:
    from hapo_ros.promotion import promote

    _report(arguments, promote(Path(arguments.checkpoint), Path(arguments.checkpoints)))
    return EXIT_OK


def _evaluate(arguments) -> int:
    from hapo_ros.sim.rollout import evaluate
    from hapo_ros.statistics import wilson

    seeds = _seeds(arguments)
    with progress("evaluating", len(seeds), arguments.json) as advance:
        episodes = evaluate(
            arguments.policy,
            arguments.task,
            seeds,
            workers=arguments.workers,
            progress=lambda done, total, result: advance(done),
        )
    successes = sum(episode.success for episode in episodes)
    low, high = wilson(successes, len(episodes))
    lengths = [episode.steps for episode in episodes if episode.success]
    _report(
        arguments,
        {
            "policy": arguments.policy,
            "seeds": [seeds[0], seeds[-1]],
            "episodes": len(episodes),
            "successes": successes,
            "success_rate": successes / len(episodes),
            "wilson_95": [low, high],
            "mean_steps_of_successes": sum(lengths) / len(lengths) if lengths else None,
            "undecodable": sum(episode.undecodable for episode in episodes),
        },
    )
    return EXIT_OK


def _info(arguments) -> int:
    from hapo_ros.episodes import describe, open_episodes, summary

    readers, skipped = open_episodes(
        arguments.bags,
        accept_recovered=arguments.accept_recovered,
        accept_discarded=True,
    )
    if not readers:
        reasons = "".join(f"\nSkipped: {item.reason}" for item in skipped)
        raise ValueError(f"There is no episode to show in {', '.join(arguments.bags)}.{reasons}")
    found = {
        "summary": summary(readers, arguments.k),
        "episodes": [describe(reader, arguments.k) for reader in readers],
        "skipped": [{"path": str(s.path), "reason": s.reason} for s in skipped],
    }
    if arguments.json:
        _print_json(found)
    else:
        _print_episodes(found)
    return EXIT_LOSS if skipped else EXIT_OK


def _print_episodes(found: dict) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    columns = ("episode", "source", "outcome", "steps", "policy", "human", "undes.", "none")
    table = Table(*columns, "taken", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for episode in found["episodes"]:
        labels = episode["labels"]
        marks = [mark for mark in ("recovered", "lossy", "excluded") if episode[mark]]
        marks += ["reviewed"] if episode["review"] and not episode["excluded"] else []
        mark = f" ({', '.join(marks)})" if marks else ""
        table.add_row(
            episode["episode_id"],
            "demo" if episode["source"] == "demonstration" else "deploy",
            episode["outcome"] + mark,
            str(episode["steps"]),
            *(str(labels[name]) for name in ("policy", "human", "undesirable", "none")),
            str(episode["takeovers"]),
        )
    total = found["summary"]
    ratio = total["intervention_ratio"]
    console.print(table)
    console.print(
        f"{total['episodes']} episodes, {total['steps']} steps, {total['takeovers']} takeovers "
        f"(taken), intervention ratio {'-' if ratio is None else f'{ratio:.1%}'}, labels: "
        + ", ".join(f"{name} {count}" for name, count in total["labels"].items())
    )
    for episode in found["episodes"]:
        for topic, count in episode["lost_messages"].items():
            console.print(f"{episode['episode_id']} lost {count} messages of {topic}")
        for after_s, jump_s in episode["clock_jumps"]:
            name = episode["episode_id"]
            console.print(
                f"{name}: the wall clock was set by {jump_s:+.1f} s after {after_s:.1f} s"
            )
    for item in found["skipped"]:
        console.print(f"skipped: {item['reason']}", highlight=False, markup=False)


def _review(arguments) -> int:
    import time

    from hapo_ros.review.server import run

    with _stop_flag() as stopped:

        def wait() -> None:
            while not stopped():
                time.sleep(0.2)

        run(
            arguments.bags,
            arguments.checkpoints,
            arguments.host,
            arguments.port,
            not arguments.no_browser,
            wait,
            lambda sentence: print(sentence, flush=True),
        )
    return EXIT_OK


def _import(arguments) -> int:
    from hapo_ros.episodes.formats import Options, import_episodes

    options = Options(
        task=arguments.task,
        instruction=arguments.instruction,
        source=arguments.kind,
        outcome=arguments.outcome,
        robot=arguments.robot,
    )
    with progress("importing", 1, arguments.json) as advance:
        summary = import_episodes(
            arguments.format,
            Path(arguments.source),
            Path(arguments.output),
            options,
            lambda done, total: advance(done, total=total),
        )
    return _transferred(arguments, summary)


def _export(arguments) -> int:
    from hapo_ros.episodes.formats import Options, export_episodes

    with progress("exporting", 1, arguments.json) as advance:
        summary = export_episodes(
            arguments.format,
            arguments.bags,
            Path(arguments.output),
            Options(k=arguments.k, video=arguments.video),
            arguments.accept_recovered,
            lambda done, total: advance(done, total=total),
        )
    return _transferred(arguments, summary)


def _transferred(arguments, summary) -> int:
    if arguments.command == "import" and not summary.episodes:
        raise ValueError(" ".join(["Nothing was imported.", *summary.skipped]))
    _report(
        arguments,
        {
            "output": str(summary.output.resolve()),
            "episodes": summary.episodes,
            "steps": summary.steps,
            "skipped": summary.skipped,
        },
    )
    return EXIT_LOSS if summary.skipped else EXIT_OK


def _view(arguments) -> int:
    from hapo_ros.episodes import EpisodeReader
    from hapo_ros.episodes.viewing import view

    save = Path(arguments.save) if arguments.save else None
    view(EpisodeReader(arguments.episode, accept_recovered=True), arguments.k, save)
    print(f"Written: {save}" if save else "The viewer has it; it stays open.")
    return EXIT_OK


def _recover(arguments) -> int:
    from hapo_ros.episodes import RecoveryError, recover, unfinished

    folders = [Path(path) for path in arguments.folders]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}. Nothing was recovered.")
    left = [each for folder in folders for each in unfinished(folder)]
    left += [folder for folder in folders if any(folder.glob("*.mcap"))]
    if not left:
        print("There is nothing to recover.")
        return EXIT_OK
    failed = 0
    for folder in left:
        try:
            print(f"{folder} -> {recover(folder)}")
        except RecoveryError as error:
            failed += 1
            print(error, file=sys.stderr)
    return EXIT_ERROR if failed == len(left) else EXIT_LOSS


def _doctor(arguments) -> int:
    from hapo_ros.doctor import main as doctor

    return doctor(json=arguments.json, live_s=arguments.live, use=arguments.use)


# Output


def _print_json(data: dict) -> None:
    print(jsonlines.line(data), flush=True)


def _report(arguments, data: dict) -> None:
    if arguments.json:
        _print_json(data)
        return
    for name, value in data.items():
        sentences = isinstance(value, list) and all(isinstance(each, str) for each in value)
        for each in value if sentences else [value]:
            if each not in (None, [], {}):
                print(f"{name.replace('_', ' ')}: {_readable(each)}")


def _readable(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(number)}" for name, number in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_readable(item) for item in value)
    return str(value)


@contextmanager
def _stop_flag():
    """SIGINT, SIGTERM and SIGHUP set a flag; yields the function that reads it.

    SIGHUP: the terminal was closed, and what is said to it from then on is not an error. Where it
    is ignored, as nohup has it, it stays so.
    """
    asked = []
    terminals = [number for number in (1, 2) if os.isatty(number)]  # closed, they are none

    def ask(number, frame):
        asked.append(number)
        if number == signal.SIGHUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
            os.close(nowhere)

    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    previous = {number: signal.signal(number, ask) for number in ends}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _seeds(arguments) -> list[int]:
    if arguments.episodes < 1:
        raise ValueError("--episodes must be at least 1.")
    if arguments.workers < 0:
        raise ValueError("--workers must be at least 0; 0 runs everything in this process.")
    return list(range(arguments.first_seed, arguments.first_seed + arguments.episodes))


# The parser


class _Parser(argparse.ArgumentParser):
    """Bad usage ends with exit code 1, as every other error does.

    complete: adds what only libraries know, when this command and no other is asked for:
    ``hapo doctor`` works where none of them does.
    """

    complete: Callable[["_Parser"], None] | None = None

    def parse_known_args(self, args=None, namespace=None):
        """Complete it, and parse."""
        complete, self.complete = self.complete, None
        if complete is not None:
            complete(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        self.exit(EXIT_ERROR, f"{self.format_usage()}{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    from hapo_ros import __version__
    from hapo_ros.doctor import USES

    parser = _Parser(
        prog="hapo", epilog=EPILOG, description="Robots that learn from being corrected."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable, text: str, example: str, as_json: bool = True, complete=None):
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"Example: {example}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run=run)
        command.complete = complete
        if as_json:
            command.add_argument("--json", action="store_true", help="machine-readable output")
        return command

    demo = add("demo", _demo, "the whole loop in simulation", "hapo demo", False, _complete_demo)
    demo.add_argument("--output", default="runs/demo", help="folder of bags, checkpoints, report")

    deploy = add(
        "deploy",
        _deploy,
        "start the nodes of a deployment without ROS 2's launch",
        "hapo deploy operator:=simulated task:=Lift",
        as_json=False,
        complete=_describing("arguments", _deploy_help),
    )
    deploy.add_argument("arguments", nargs="*", metavar="NAME:=VALUE", help="see below")

    console = add(
        "console",
        _console,
        "see and steer a running deployment: authority, episodes, hold, emergency stop",
        "hapo console --seed 100",
        as_json=False,
    )
    console.add_argument("--task", default="", help="empty: the deployment's own")
    console.add_argument("--instruction", default="", help="empty: the task's own")
    console.add_argument(
        "--seed", type=int, help="of the first episode, then counting up; on from the last one seen"
    )

    collect = add(
        "collect",
        _collect,
        "record episodes in simulation, without ROS: demonstrations, or deployments of a policy",
        "hapo collect --episodes 40 --output runs/demonstrations",
    )
    collect.add_argument("--output", required=True, help="folder of the episodes")
    collect.add_argument("--policy", help="checkpoint to deploy; without it: demonstrations")
    collect.add_argument(
        "--inputs",
        choices=("images", "state", "both"),
        default="images",
        help="what a demonstration records",
    )
    collect.add_argument("--cameras", default="agentview,wrist", help="of a demonstration")
    collect.add_argument("--image-size", type=int, default=84, help="of a demonstration, pixels")
    collect.add_argument(
        "--no-disturbance", action="store_true", help="demonstrations without disturbed bursts"
    )
    _add_seeds(collect, episodes=10)

    train = add(
        "train",
        _train,
        "train a base policy by behaviour cloning",
        "hapo train runs/demonstrations --output runs/base",
    )
    _add_learning(train)

    optimize = add(
        "optimize",
        _optimize,
        "learn from interventions",
        "hapo optimize runs/demonstrations runs/bags --base runs/base --method hapo_anchored "
        "--output runs/better",
        complete=_describing("methods", _methods_help),
    )
    _add_learning(optimize)
    optimize.add_argument("--base", required=True, help="checkpoint to start from")
    optimize.add_argument("--method", required=True, help="one of the above")
    optimize.add_argument(
        "--allow-missing-group",
        action="store_true",
        help="give the share of a group without steps to the others; a setting too",
    )
    optimize.add_argument("--reference-cache", help="folder of kept reference log-probabilities")

    promote = add(
        "promote",
        _promote,
        "serve a checkpoint from now on",
        "hapo promote runs/better",
    )
    promote.add_argument("checkpoint")
    promote.add_argument("--checkpoints", default="runs/checkpoints", help="folder of current.json")

    evaluate = add(
        "evaluate",
        _evaluate,
        "success rate of a policy alone",
        "hapo evaluate runs/base --first-seed 9000 --episodes 100 --workers 2",
    )
    evaluate.add_argument("policy", help="checkpoint")
    _add_seeds(evaluate, episodes=50)

    info = add("info", _info, "what is in recorded episodes", "hapo info runs/bags")
    info.add_argument("bags", nargs="+", help="episodes, or folders of episodes")
    info.add_argument(
        "--k", type=int, default=10, help="steps before a takeover that are undesirable"
    )
    info.add_argument(
        "--accept-recovered", action="store_true", help="show recovered and lossy ones too"
    )

    review = add(
        "review",
        _review,
        "look at recorded episodes in a browser: labels, outcomes, notes, training",
        "hapo review runs/bags",
        as_json=False,
    )
    review.add_argument("bags", nargs="+", help="folders of episodes")
    review.add_argument("--port", type=int, default=8777, help="0: any that is free")
    review.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; with a token where others reach it",
    )
    review.add_argument("--no-browser", action="store_true", help="only print the address")
    review.add_argument(
        "--checkpoints",
        default="runs/checkpoints",
        help="folder of base checkpoints, and of what the page has trained",
    )

    import_ = add(
        "import",
        _import,
        "make bags of other recordings",
        "hapo import robomimic lift.hdf5 --output runs/lift --instruction 'lift the cube'",
    )
    format_ = import_.add_argument("format", metavar="FORMAT", help="see above")
    import_.complete = partial(_complete_formats, "reads", format_)
    import_.add_argument("source", help="file or folder to read; it is not changed")
    import_.add_argument("--output", required=True, help="folder of the episodes")
    import_.add_argument("--task", default="", help="empty: as the source says")
    import_.add_argument("--instruction", default="", help="empty: as the source or the task says")
    import_.add_argument(
        "--kind",
        choices=("demonstration", "deployment"),
        default="",
        help="what the source's episodes are; by default deployments where it has labels",
    )
    import_.add_argument(
        "--outcome",
        choices=("success", "failure"),
        default="",
        help="how they ended; by default as the source says",
    )
    import_.add_argument(
        "--robot",
        default="",
        help="of rosbag: name or YAML file of the robot whose topics it holds",
    )

    export = add(
        "export",
        _export,
        "write bags in another form, with labels as relabelled and reviewed",
        "hapo export lerobot runs/bags --output runs/lerobot",
    )
    format_ = export.add_argument("format", metavar="FORMAT", help="see above")
    export.complete = partial(_complete_formats, "writes", format_)
    export.add_argument("bags", nargs="+", help="episodes, or folders of episodes")
    export.add_argument("--output", required=True, help="new file or folder")
    export.add_argument(
        "--k", type=int, default=10, help="steps before a takeover that are undesirable (10)"
    )
    export.add_argument(
        "--video", action="store_true", help="of lerobot: images as video, smaller and lossy"
    )
    export.add_argument(
        "--accept-recovered", action="store_true", help="recovered and lossy ones too"
    )

    view = add(
        "view",
        _view,
        "open an episode in Rerun: images, actions, labels as a timeline of states",
        "hapo view runs/bags/20260101T120000_Lift --save episode.rrd",
        as_json=False,
    )
    view.add_argument("episode", help="its folder; recovered and discarded ones too")
    view.add_argument("--save", help="new .rrd file, instead of opening the viewer")
    view.add_argument(
        "--k", type=int, default=10, help="steps before a takeover that are undesirable"
    )

    recover = add(
        "recover",
        _recover,
        "save what a crash left of a recording",
        "hapo recover runs/bags",
        as_json=False,
    )
    recover.add_argument("folders", nargs="+", help="folders of episodes, or damaged bags")

    doctor = add("doctor", _doctor, "what is installed, missing, and how to get it", "hapo doctor")
    doctor.add_argument("--live", type=float, default=0.0, help="seconds to watch the SpaceMouse")
    doctor.add_argument("--use", choices=USES, default="simulation")
    return parser


def _add_seeds(command, episodes: int) -> None:
    command.add_argument("--task", default="Lift")
    command.add_argument("--episodes", type=int, default=episodes)
    command.add_argument("--first-seed", type=int, default=1, help="seeds count up from here")
    command.add_argument("--workers", type=int, default=2, help="processes")


def _add_learning(command) -> None:
    command.add_argument("bags", nargs="+", help="episodes, or folders of episodes")
    command.add_argument("--output", required=True, help="folder of the new checkpoint")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting; repeatable"
    )
    command.add_argument("--settings", default="{}", help="settings as a JSON object")
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run that was cancelled or killed, by the same command",
    )


# What completes the commands


def _complete_demo(command: _Parser) -> None:
    from hapo_ros.demo import DemoOptions

    for name, text in (
        ("demonstrations", "episodes of the expert"),
        ("seeds", "evaluation episodes a policy"),
        ("steps", "optimizer steps"),
        ("episodes", "deployment episodes, at most"),
        ("takeovers", "stop deploying after so many"),
        ("workers", "processes of collection and evaluation"),
    ):
        default = getattr(DemoOptions, name)
        command.add_argument(f"--{name}", type=int, default=default, help=text)


def _describing(title: str, rows: Callable[[], str]) -> Callable[[_Parser], None]:
    def complete(command: _Parser) -> None:
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.description += f"\n\n{title}:\n{rows()}"

    return complete


def _complete_formats(does: str, format_: argparse.Action, command: _Parser) -> None:
    _describing("formats", partial(_formats_help, does))(command)
    format_.choices = _formats(does)


def _methods_help() -> str:
    from hapo_ros.learning.methods import METHODS

    return "\n".join(f"  {m.name:15}{m.text}" for m in METHODS.values() if m.name != "bc")


def _formats(does: str) -> list[str]:
    from hapo_ros.episodes.formats import FORMATS

    return [each.name for each in FORMATS.values() if getattr(each, does)]


def _formats_help(does: str) -> str:
    from hapo_ros.episodes.formats import FORMATS

    return "\n".join(f"  {name:11}{FORMATS[name].text}" for name in _formats(does))


def _deploy_help() -> str:
    from hapo_ros.deployment import ARGUMENTS

    rows = [(f"  {a.name}:={a.default}", a.description) for a in ARGUMENTS]
    return "\n".join(f"{given:33}{text}" for given, text in rows)


if __name__ == "__main__":
    sys.exit(main())
