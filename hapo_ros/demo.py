"""``hapo demo``: the whole loop in simulation, on the real graph, with an honest comparison.

Demonstrations, a deployment with takeovers, optimization through the graph's action, the result
served by the same policy node, the next deployment, and an evaluation on seeds nobody trained on.
"""

import json
import os
import platform
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from hapo_ros import __version__
from hapo_ros.deployment import Deployment, describe
from hapo_ros.episodes import describe as describe_episode
from hapo_ros.episodes import open_episodes
from hapo_ros.episodes import summary as summarize
from hapo_ros.gateway_client import GatewayClient
from hapo_ros.progress import progress
from hapo_ros.promotion import promote
from hapo_ros.report.terminal import print_results
from hapo_ros.resources import resource
from hapo_ros.supervisor import DeploymentError, Supervisor

TASK = "Lift"
METHOD, CONTROL = "hapo_anchored", "bc_continue"
ENOUGH_TAKEOVERS = 8
# Seeds of a demo never meet: demonstrations, deployment, next deployment, evaluation.
DEMONSTRATION_SEED, DEPLOYMENT_SEED, NEXT_SEED, EVALUATION_SEED = 1, 2_000, 3_000, 9_000
DEMONSTRATIONS = 20
NEXT_EPISODES = 2
SETTINGS = {"parameters": "full", "lr": 2e-4, "batch_size": 32}
SILENCE_S = 120.0  # longest time without any sign of life from a training
EXIT_LOSS = 3
MARKER = ".hapo_demo"  # in a folder that a demo made


@dataclass
class DemoOptions:
    """demonstrations: episodes of the expert. seeds: evaluation episodes an arm. steps: optimizer
    steps. episodes, takeovers: the deployment ends at whichever comes first. workers: processes of
    the synchronous parts. Raises ValueError for what cannot be run."""

    demonstrations: int = DEMONSTRATIONS
    seeds: int = 30
    steps: int = 300
    episodes: int = 40
    takeovers: int = 24
    workers: int = 2

    def __post_init__(self):
        for name, least in (
            ("demonstrations", 2),  # z0 pairs steps of different episodes
            ("seeds", 1),
            ("steps", 1),
            ("episodes", 1),
            ("takeovers", 1),
            ("workers", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"--{name} must be at least {least}, not {getattr(self, name)}. Nothing was "
                    "started."
                )

    @property
    def enough(self) -> int:
        """Takeovers without which there is nothing to say about what was learned from them."""
        return min(ENOUGH_TAKEOVERS, self.takeovers)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM."""


@dataclass
class _Graph:
    """What the graph has said so far, by its events."""

    episodes: list[dict] = field(default_factory=list)
    authority: dict = field(default_factory=dict)
    policy: dict = field(default_factory=dict)
    takeovers: int = 0
    _takeovers_now: int = 0

    def hear(self, event: dict) -> None:
        if event["event"] == "authority":
            self._takeovers_now = event["takeovers"]
            self.authority = event
        elif event["event"] == "policy":
            self.policy = event
        elif event["event"] == "episode" and event["outcome"] and event["bag"]:
            self.episodes.append(event)
            self.takeovers += self._takeovers_now
            self._takeovers_now = 0


def run_demo(output: Path, options: DemoOptions) -> int:
    """Run the demo into ``output``; returns the exit code. An earlier demo there is moved aside."""
    output = output.resolve()
    _move_aside(output)
    _private_graph(output)
    base = resource("models/lift_base")
    print(_what_happens(output, base, options), flush=True)
    took: dict[str, float] = {}
    with _interruptible():
        with _phase("Demonstrations, by the scripted expert", took):
            demonstrations = _demonstrate(output, base, options)
        bags = output / "bags" / "deployment"
        deployment = describe(
            {
                "task": TASK,
                "policy": str(base),
                "operator": "simulated",
                "bags": str(bags),
                "checkpoints": str(output / "checkpoints"),
                "episodes": str(options.episodes),
                "takeovers": str(options.takeovers),
                "first_seed": str(DEPLOYMENT_SEED),
            }
        )
        graph = _Graph()
        with (
            Supervisor(deployment, output / "logs") as supervisor,
            GatewayClient(30.0, graph.hear) as gateway,
        ):
            with _phase("Deployment on the ROS graph, with takeovers", took):
                supervisor.start()
                _deploy(supervisor, gateway, graph, options)
            if graph.takeovers < options.enough:
                print(
                    f"\nOnly {graph.takeovers} takeovers in {len(graph.episodes)} episodes; at "
                    f"least {options.enough} are needed to learn from. The demo ends here. What it "
                    f"recorded is in {output / 'bags'}. Run again with more --episodes."
                )
                return EXIT_LOSS
            checkpoints = {}
            for method in (METHOD, CONTROL):
                sources = [demonstrations] if method == CONTROL else [demonstrations, bags]
                with _phase(f"Optimize, through the ROS action: {method}", took):
                    checkpoints[method] = _optimize(
                        supervisor, gateway, method, sources, base, output, options
                    )
            with _phase("Serve the result: the same policy node loads it", took):
                _serve(supervisor, gateway, graph, checkpoints[METHOD], output)
            with _phase("The next deployment, with the new policy", took):
                _deploy_again(supervisor, gateway, graph, deployment, output)
        with _phase("Evaluation on unseen seeds, policies alone", took):
            arms = {"base": base} | checkpoints
            evaluation = _evaluate(arms, options)
    results = _results(bags, evaluation, checkpoints, took)
    report = _write(output, results)
    print_results(results, METHOD, CONTROL)
    for name, where in (
        ("bags", output / "bags"),
        ("checkpoint", checkpoints[METHOD]),
        ("report", report),
    ):
        print(f"{name + ':':12}{where}")
    return 0


def _what_happens(output: Path, base: Path, options: DemoOptions) -> str:
    return f"""\
hapo_ros {__version__}: robots that learn from being corrected. The whole loop, in simulation:
  1. a scripted expert demonstrates {TASK} {options.demonstrations} times (half of every batch)
  2. the ROS graph runs: a shipped policy ({base.name}) acts, a simulated operator takes over
     through the SpaceMouse topics, in up to {options.episodes} episodes
  3. the optimizer learns from the bags ({METHOD}), and a control without them ({CONTROL})
  4. the policy node serves the result without restarting; the next deployment uses it
  5. base, result and control are compared on {options.seeds} seeds none of them was trained on
It takes 7 to 12 minutes on 2 cores, and writes to {output}. Ctrl-C ends it cleanly.
"""


def _move_aside(output: Path) -> None:
    """Make a new folder; an earlier demo's is renamed, anything else is left alone."""
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise ValueError(
            f"{output} exists and is no earlier demo. Nothing was written. Give another --output."
        )
    if (output / MARKER).exists():
        _rename(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


def _rename(output: Path) -> None:
    at = datetime.fromtimestamp(output.stat().st_mtime, timezone.utc)
    aside = output.with_name(f"{output.name}-{at:%Y%m%dT%H%M%S}")
    output.rename(aside)
    print(f"The earlier demo is now in {aside}.")


def _private_graph(output: Path) -> None:
    """A graph of its own, on this machine only, whatever else runs here."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 100)))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_LOG_DIR"] = str(output / "logs" / "ros")
    os.environ.setdefault("MUJOCO_GL", "egl")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise here, once; what follows then runs to its end undisturbed."""

    def interrupt(number, _frame):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted

    previous = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _phase(title: str, took: dict[str, float]) -> Iterator[None]:
    print(f"\n{title}", flush=True)
    started = time.monotonic()
    yield
    took[title] = time.monotonic() - started
    print(f"  done in {took[title]:.0f} s", flush=True)


def _demonstrate(output: Path, base: Path, options: DemoOptions) -> Path:
    from hapo_ros.policies.checkpoint import read_config
    from hapo_ros.sim.environment import Disturbance
    from hapo_ros.sim.rollout import collect

    folder = output / "bags" / "demonstrations"
    seeds = range(DEMONSTRATION_SEED, DEMONSTRATION_SEED + options.demonstrations)
    cameras = {name: list(size) for name, size in read_config(base)["config"]["cameras"].items()}
    with progress("demonstrations", len(seeds)) as advance:
        collect(
            folder,
            TASK,
            list(seeds),
            disturbance=Disturbance(),
            cameras=cameras,
            workers=options.workers,
            progress=lambda done, total, result: advance(done),
        )
    return folder


def _deploy(supervisor, gateway, graph: _Graph, options: DemoOptions) -> None:
    with progress("episodes", options.episodes) as advance:
        while "simulated_operator" not in supervisor.done:
            supervisor.watch()
            gateway.news()
            who = graph.authority.get("text", "The nodes are starting.")
            takeovers = graph.takeovers + graph._takeovers_now
            advance(len(graph.episodes), f"{takeovers} takeovers. {who}")
            time.sleep(0.05)
        gateway.news()
        advance(len(graph.episodes), f"{graph.takeovers} takeovers", len(graph.episodes))


def _optimize(supervisor, gateway, method, sources, base, output, options) -> Path:
    request = gateway.begin(
        "optimize",
        bags=[str(source) for source in sources],
        base_checkpoint=str(base),
        method=method,
        output=str(output / "checkpoints" / method),
        settings_json=json.dumps(SETTINGS | {"steps": options.steps}),
    )
    result = {}
    with progress("steps", options.steps) as advance:
        for said in gateway.replies(request, SILENCE_S):
            supervisor.watch()
            if said and "feedback" in said:
                step = said["feedback"]
                text = f"loss {step['loss']:.3f}"
                if step["reward_desirable"] is not None:  # a preference method
                    text += (
                        f", reward desirable {step['reward_desirable']:+.2f}, undesirable "
                        f"{step['reward_undesirable']:+.2f}"
                    )
                advance(step["step"], text)
            elif said:
                result = said["result"]
    if not result.get("ok"):
        raise DeploymentError(f"The optimizer gave no checkpoint: {result.get('text')}")
    print(f"  {result['text']}")
    return Path(result["checkpoint"])


def _serve(supervisor, gateway, graph: _Graph, checkpoint: Path, output: Path) -> None:
    before, pid = graph.policy.get("version"), supervisor.pid("policy")
    served = promote(checkpoint, output / "checkpoints", graph=gateway)
    if supervisor.pid("policy") != pid or not served["running_policy"].startswith("loaded"):
        raise DeploymentError(f"The policy node did not load it: {served['running_policy']}")
    print(f"  policy node (pid {pid}, not restarted): {before} -> {served['version']}")


def _deploy_again(supervisor, gateway, graph: _Graph, deployment: Deployment, output) -> None:
    spec = next(node for node in deployment.nodes if node.name == "simulated_operator")
    parameters = {"episodes": NEXT_EPISODES, "takeovers": 0, "first_seed": NEXT_SEED}
    supervisor.run_again(replace(spec, parameters=dict(spec.parameters) | parameters))
    before = len(graph.episodes)
    with progress("episodes", NEXT_EPISODES) as advance:
        while "simulated_operator" not in supervisor.done:
            supervisor.watch()
            gateway.news()
            advance(len(graph.episodes) - before)
            time.sleep(0.05)
        gateway.news()
    for event in graph.episodes[before:]:
        print(f"  {event['episode_id']}: {event['outcome']}")


def _evaluate(arms: dict[str, Path], options: DemoOptions) -> dict:
    from hapo_ros.sim.rollout import evaluate

    seeds = list(range(EVALUATION_SEED, EVALUATION_SEED + options.seeds))
    found = {}
    with progress("episodes", len(seeds) * len(arms)) as advance:
        for index, (name, checkpoint) in enumerate(arms.items()):
            episodes = evaluate(
                checkpoint,
                TASK,
                seeds,
                workers=options.workers,
                progress=lambda done, total, _, i=index, n=name: advance(i * total + done, n),
            )
            found[name] = {
                "successes": [episode.success for episode in episodes],
                "steps": [episode.steps for episode in episodes],
            }
    return {"seeds": [seeds[0], seeds[-1]], "arms": found}


def _results(bags: Path, evaluation: dict, checkpoints: dict, took: dict) -> dict:
    readers, _ = open_episodes(bags)
    deployed = [r for r in readers if r.info.seed < NEXT_SEED]
    first = deployed[0].info
    total = summarize(deployed)
    return {
        "task": TASK,
        "instruction": first.instruction,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": first.versions,
        "took_s": took,
        "bags": str(bags),
        "checkpoints": {name: str(path) for name, path in checkpoints.items()},
        "episodes": [describe_episode(reader) for reader in deployed],
        "summary": total,
        "labels": total["labels"],
        "intervention_ratio": total["intervention_ratio"],
        "training": {
            name: str(path.with_name(path.name + ".run") / "metrics.jsonl")
            for name, path in checkpoints.items()
        },
        "evaluation": evaluation,
    }


def _write(output: Path, results: dict) -> Path:
    from hapo_ros.report.page import write_report

    (output / "results.json").write_text(json.dumps(results, indent=1))
    return write_report(output / "report.html", results)
