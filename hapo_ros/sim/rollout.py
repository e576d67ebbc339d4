"""Episodes without ROS: simulation, arbiter, policy, operator and bag in lock-step, in one process.

The same parts as on the graph, in the same order a tick, and bags of the same form.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from hapo_ros import labels, topics
from hapo_ros.arbitration import (
    Applied,
    Arbiter,
    ArbiterConfig,
    Decision,
    Event,
    HumanSample,
    PolicyCommand,
    Tick,
)
from hapo_ros.episodes.software import software_versions
from hapo_ros.episodes.types import MAX_LOST_FRACTION, EpisodeInfo, Observation
from hapo_ros.episodes.writer import EpisodeWriter, partial_folder
from hapo_ros.policies.base import finite_act, is_action
from hapo_ros.sim.environment import CONTROL_HZ, Disturbance, Simulation, action_space
from hapo_ros.sim.operator import EndEpisode, OperatorConfig, OperatorOutput, SimulatedOperator
from hapo_ros.sim.recording import EpisodeRecord
from hapo_ros.sim.tasks import get_task
from hapo_ros.sim.workers import run_seeds

TICK_NS = round(1e9 / CONTROL_HZ)


class Acting(Protocol):
    """What a rollout needs of a policy; ``hapo_ros.policies.base.Policy`` has it."""

    version: str
    confidence: float

    def act(self, observation: Observation, instruction: str) -> np.ndarray:
        """(T, D) float32."""


@dataclass(frozen=True)
class EpisodeSummary:
    """What came of one episode.

    steps: decided ticks. live: (steps,) live labels. takeovers: human segments. unresolved: the
    operator was still correcting at the end. undecodable: answers of the policy that were no
    action, a hold each. path: of the bag, None where none was written.
    """

    episode_id: str
    seed: int
    outcome: str
    steps: int
    live: tuple[int, ...]
    unresolved: bool = False
    undecodable: int = 0
    note: str = ""
    path: Path | None = None

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    @property
    def takeovers(self) -> int:
        return labels.takeovers(self.live) if self.live else 0

    @property
    def intervention_ratio(self) -> float:
        """Human steps over executed steps; 0 where nothing was executed."""
        return labels.intervention_ratio(self.live) if self.live else 0.0


def run_episode(
    simulation: Simulation,
    arbiter: Arbiter,
    info: EpisodeInfo,
    *,
    policy: Acting | None = None,
    operator: SimulatedOperator | None = None,
    writer: EpisodeWriter | None = None,
    start_ns: int = 0,
) -> EpisodeSummary:
    """Run one episode from ``info.seed`` to its end.

    info: its source says whether the policy is asked (deployment) or not; its ``cameras`` and
    ``object_state`` what is observed. operator: ends the episode, and takes over; without one the
    episode ends at the first success or at the task's horizon, and the arbiter's configuration
    needs ``on_device_lost="continue"``. writer: finished here, with the outcome; on an exception it
    is the caller's to close. T decisions make T + 1 ticks: the last shows what the last action did.
    Raises ValueError where nobody could act.
    """
    demonstration = info.source == "demonstration"
    if operator is None and (policy is None or demonstration):
        raise ValueError(f"Nobody acts in this {info.source}: it needs an operator.")
    if policy is None and not demonstration:
        raise ValueError("A deployment needs a policy.")
    record, live, undecodable = EpisodeRecord(writer, info), [], 0
    events = [Event.START_DEMONSTRATION if demonstration else Event.START_DEPLOYMENT]
    observation = simulation.reset(info.seed)
    tick = Tick(
        info.episode_id,
        sequence=0,
        stamp_ns=start_ns,
        applied_action=simulation.applied_action,
        success=simulation.success,
    )
    while True:
        if not info.object_state:
            observation = replace(observation, object_state=None)
        record.observed(observation, tick)
        if operator is None:
            answer = _judge(tick, simulation.task.horizon)
        else:
            answer = operator.act(tick, simulation.privileged())
        if isinstance(answer, EndEpisode):
            break
        now_s = tick.stamp_ns / 1e9
        human = [] if answer is None else [_sample(answer, tick, now_s)]
        command = None
        if not demonstration and tick.policy_due:
            command = _ask(policy, observation, info.instruction, tick)
            undecodable += not is_action(command.actions)
        record.answered(tick, command, human)
        decision = arbiter.step(now_s, tick, command, human, events)
        record.decided(tick, decision, arbiter, now_s)
        live.append(int(decision.label))
        events = []
        observation = simulation.step(decision.action)
        tick = _following(tick, decision, simulation)
    return EpisodeSummary(
        episode_id=info.episode_id,
        seed=info.seed,
        outcome=answer.outcome,
        steps=len(live),
        live=tuple(live),
        unresolved=answer.unresolved,
        undecodable=undecodable,
        note=answer.note,
        path=record.finished(answer.outcome, answer.note, answer.unresolved),
    )


def _judge(tick: Tick, horizon: int) -> EndEpisode | None:
    """How an episode that nobody watches ends, if it ends now."""
    if tick.success:
        return EndEpisode("success", False, "The task is done.")
    if tick.sequence >= horizon:
        return EndEpisode("failure", False, f"Not done after {horizon} steps.")
    return None


def _sample(output: OperatorOutput, tick: Tick, now_s: float) -> HumanSample:
    return HumanSample(output.axes, output.buttons, output.twist, now_s, tick.stamp_ns)


def _ask(policy: Acting, observation: Observation, instruction: str, tick: Tick) -> PolicyCommand:
    actions = finite_act(policy, observation, instruction)
    return PolicyCommand(
        tick.episode_id, tick.sequence, tick.epoch, policy.version, actions, policy.confidence
    )


def _following(tick: Tick, decision: Decision, simulation: Simulation) -> Tick:
    return Tick(
        tick.episode_id,
        sequence=tick.sequence + 1,
        stamp_ns=tick.stamp_ns + TICK_NS,
        applied_sequence=tick.sequence,
        applied=Applied.APPLIED,
        applied_action=simulation.applied_action,
        authority=decision.authority,
        epoch=decision.epoch,
        policy_due=decision.policy_due,
        success=simulation.success,
    )


@dataclass(frozen=True)
class Campaign:
    """Many episodes of one kind, as a worker runs them; see :func:`collect` and :func:`evaluate`.

    operator None: nobody watches. cameras: name -> [height, width]; None, like object_state None:
    what the policy needs. root None: no bags.
    """

    task: str
    source: str
    checkpoint: str | None = None
    operator: OperatorConfig | None = None
    disturbance: Disturbance | None = None
    cameras: dict[str, list[int]] | None = None
    object_state: bool | None = None
    root: str | None = None
    prefix: str = ""

    def start(self) -> Callable[[int], EpisodeSummary]:
        """Build simulation and policy; returns the function that runs one seed.

        Raises ValueError where the policy cannot be shown this task.
        """
        task, policy = get_task(self.task), None
        if self.checkpoint is not None:
            import torch

            from hapo_ros.policies import checkpoint

            torch.set_num_threads(1)
            policy = checkpoint.load(self.checkpoint)
            if policy.object_state not in (0, len(task.object_state)):
                raise ValueError(
                    f"The policy needs an object state of {policy.object_state} numbers, and "
                    f"{task.name} has {len(task.object_state)}. It is a policy for another task."
                )
        cameras = policy.cameras if self.cameras is None else self.cameras
        state = policy.object_state > 0 if self.object_state is None else self.object_state
        simulation = Simulation(task, _size(cameras), tuple(cameras), self.disturbance)
        observed = {
            "cameras": {name: list(size) for name, size in cameras.items()},
            "object_state": list(task.object_state) if state else [],
        }
        return lambda seed: self._run(simulation, policy, observed, seed)

    def _run(self, simulation, policy, observed: dict, seed: int) -> EpisodeSummary:
        task, operator = simulation.task, None
        if self.operator is not None:
            operator = SimulatedOperator(task, self.operator, seed, self.source)
        config = ArbiterConfig(lock_step=True, on_device_lost="hold" if operator else "continue")
        info = EpisodeInfo(
            episode_id=self._episode_id(seed),
            task=task.name,
            instruction=task.instruction,
            source=self.source,
            seed=seed,
            policy_version=policy.version if policy else "",
            action_space=action_space(),
            normalisation=policy.parts()["normalisation"] if policy else {},
            settings={
                "robot": "simulation",
                "arbiter": asdict(config),
                "operator": {"kind": "simulated"} | asdict(self.operator) if operator else None,
                "disturbance": asdict(self.disturbance) if self.disturbance else None,
            },
            versions=software_versions(),
            max_lost_fraction=MAX_LOST_FRACTION,
            **observed,
        )
        with self._writer(info) as writer:
            return run_episode(
                simulation, Arbiter(config), info, policy=policy, operator=operator, writer=writer
            )

    def tidy(self, seed: int) -> None:
        """Remove the unfinished episode of a seed: in the way of its next run, and of no use."""
        if self.root is not None:
            partial = partial_folder(Path(self.root), self._episode_id(seed))
            shutil.rmtree(partial, ignore_errors=True)

    def _episode_id(self, seed: int) -> str:
        prefix = self.prefix or f"{get_task(self.task).name.lower()}-{self.source}"
        return f"{prefix}-{seed:06d}"

    def _writer(self, info: EpisodeInfo):
        if self.root is None:
            return nullcontext()
        recorded = topics.recorded(info.cameras, bool(info.object_state))
        return EpisodeWriter(self.root, info, recorded, start_ns=0)


def collect(
    root: str | Path,
    task: str,
    seeds: Sequence[int],
    *,
    checkpoint: str | Path | None = None,
    operator: OperatorConfig | None = None,
    disturbance: Disturbance | None = None,
    cameras: dict[str, list[int]] | None = None,
    object_state: bool | None = None,
    prefix: str = "",
    workers: int = 1,
    progress: Callable[[int, int, EpisodeSummary], None] | None = None,
) -> list[EpisodeSummary]:
    """Record one episode a seed, each with the simulated operator, as bags under ``root``.

    Without a checkpoint: demonstrations, by the expert through the arbiter; ``disturbance`` is then
    usually :class:`Disturbance`, and the operator has a steady hand unless given. With one:
    deployments of that policy. cameras (name -> [height, width]; {} for none) and object_state:
    what is observed and recorded; by default what the policy needs, and in demonstrations both of
    the task's cameras at 84 x 84. prefix: episodes are called ``<prefix>-<seed>``. workers,
    progress and what is raised: see ``run_seeds``. When it is interrupted, the finished episodes
    stay and the unfinished ones are removed.
    """
    known = get_task(task)
    if checkpoint is None:
        operator = operator or OperatorConfig(noise=0.0)
        cameras = {name: [84, 84] for name in known.cameras} if cameras is None else cameras
        object_state = bool(object_state)
    campaign = Campaign(
        task=task,
        source="demonstration" if checkpoint is None else "deployment",
        checkpoint=_checked(checkpoint),
        operator=operator or OperatorConfig(),
        disturbance=disturbance,
        cameras=cameras,
        object_state=object_state,
        root=str(root),
        prefix=prefix,
    )
    return run_seeds(campaign, seeds, workers=workers, progress=progress)


def evaluate(
    checkpoint: str | Path,
    task: str,
    seeds: Sequence[int],
    *,
    workers: int = 1,
    progress: Callable[[int, int, EpisodeSummary], None] | None = None,
) -> list[EpisodeSummary]:
    """Let the policy act alone, once a seed; results in the order of ``seeds``. No bags.

    An episode ends at the first success or at the task's horizon. Raised: see ``run_seeds``.
    """
    campaign = Campaign(get_task(task).name, "deployment", _checked(checkpoint))
    return run_seeds(campaign, seeds, workers=workers, progress=progress)


def _checked(checkpoint) -> str | None:
    """The checkpoint's path, after a look at it: better now than in every worker."""
    if checkpoint is None:
        return None
    from hapo_ros.policies import checkpoint as checkpoints

    checkpoints.read_config(checkpoint)
    return str(checkpoint)


def _size(cameras: dict) -> int:
    """The side of the images, in pixels. Raises ValueError unless all are square and as large."""
    sizes = {tuple(size) for size in cameras.values()} or {(1, 1)}
    height, width = next(iter(sizes))
    if len(sizes) > 1 or height != width:
        raise ValueError(f"The simulation renders square images of one size, not {dict(cameras)}.")
    return height
