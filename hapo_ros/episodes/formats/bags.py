"""An episode from elsewhere -> an ordinary bag, as the recorder would have written it."""

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np

from hapo_ros import topics
from hapo_ros.arbitration.types import Applied, Authority, Decision, PolicyCommand, Reason, Tick
from hapo_ros.episodes import messages, reviews
from hapo_ros.episodes.contents import sha256
from hapo_ros.episodes.formats.common import BadSource, Foreign
from hapo_ros.episodes.types import EpisodeInfo, EpisodeResult, Observation, Step
from hapo_ros.episodes.writer import EpisodeWriter, check_episode_id, partial_folder
from hapo_ros.labels import HUMAN, NONE, POLICY

AUTHORITY = {POLICY: Authority.POLICY, HUMAN: Authority.HUMAN, NONE: Authority.HOLD}
PERIOD_NS = 50_000_000  # of a step whose neighbours do not tell


def write_bag(root: Path, recorded: Foreign) -> Path:
    """Write the episode's bag into ``root``; returns its folder.

    A step whose observation is not there becomes a tick that names none. Raises BadSource ("name",
    "taken", "malformed"), with nothing written, and EpisodeWriteError or ReviewError where the disk
    is the reason.
    """
    info, steps = recorded.info, recorded.steps
    try:
        check_episode_id(info.episode_id)
    except ValueError as error:
        raise BadSource("name", repr(info.episode_id)) from error
    if (root / info.episode_id).exists() or partial_folder(root, info.episode_id).exists():
        raise BadSource("taken", info.episode_id, f"({root / info.episode_id})")
    if any(_form(step.observation) != _form_of(info) for step in steps):
        raise BadSource("malformed", info.episode_id, "(its observations are not what it says)")
    declared = topics.recorded(info.cameras, bool(info.object_state), operator=False)
    writer = EpisodeWriter(root, info, declared, start_ns=steps[0].stamp_ns)
    try:
        with writer:
            _Messages(writer, recorded).write()
            folder = writer.finish(recorded.result or _result(writer, recorded))
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        shutil.rmtree(partial_folder(root, info.episode_id), ignore_errors=True)
        raise BadSource("malformed", info.episode_id, f"({error})") from error
    except BaseException:  # the source is still there, and the next import begins anew
        shutil.rmtree(partial_folder(root, info.episode_id), ignore_errors=True)
        raise
    try:
        _keep_review(folder, recorded)
    except BaseException:  # what was decided about it belongs to it
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _keep_review(folder: Path, recorded: Foreign) -> None:
    """Put the review beside the bag that it is for now."""
    if not recorded.review:
        return
    (mcap_file,) = folder.glob("*.mcap")
    steps = len(recorded.steps) if recorded.timeline is None else len(recorded.timeline)
    reviews.append(
        folder,
        recorded.review,
        seen=0,
        episode_id=recorded.info.episode_id,
        bag_hash=sha256(mcap_file),
        steps=steps,
    )


def _form(observation: Observation) -> tuple[dict, int]:
    """(size by camera, numbers of the object state) of what was observed."""
    state = observation.object_state
    sizes = {name: list(image.shape[:2]) for name, image in observation.images.items()}
    return sizes, 0 if state is None else len(state)


def _form_of(info: EpisodeInfo) -> tuple[dict, int]:
    """The same, of what is said to be observed."""
    return {name: list(size) for name, size in info.cameras.items()}, len(info.object_state)


def _result(writer: EpisodeWriter, recorded: Foreign) -> EpisodeResult:
    """What was written, and how many steps have no observation."""
    result = writer.result(recorded.outcome, note=recorded.note)
    gaps = result.steps - len(recorded.steps)
    if not gaps:
        return result
    lost = {topics.OBSERVATION_TICK: gaps}
    lossy = gaps > recorded.info.max_lost_fraction * result.steps
    return replace(result, lost=lost, lossy=lossy)


class _Messages:
    """The messages of an episode, in the order of the recorder's topics."""

    def __init__(self, writer: EpisodeWriter, recorded: Foreign):
        self._writer, self._info, self._types = writer, recorded.info, messages.bag_types()
        self._steps = {step.sequence: step for step in recorded.steps}
        self._outcome = recorded.outcome
        live = recorded.timeline
        self._live = [s.live for s in recorded.steps] if live is None else live.tolist()
        self._hold = np.zeros_like(recorded.steps[0].action)
        self._last = Tick(self._info.episode_id, -1, recorded.steps[0].stamp_ns)

    def write(self) -> None:
        for sequence, live in enumerate(self._live):
            step = self._steps.get(sequence)
            tick = self._tick(sequence, step)
            if step is None:
                self._put({topics.OBSERVATION_TICK: messages.tick_message(self._types, tick, {})})
                action, requested = self._hold, self._hold[:0]
            else:
                self._put(
                    messages.observation_messages(
                        self._types, step.observation, tick, self._info.object_state
                    )
                )
                action, requested = step.action, step.requested
                self._command(tick, step)
            decision = Decision(
                episode_id=tick.episode_id,
                sequence=sequence,
                action=action,
                requested=requested,
                label=live,
                authority=AUTHORITY[live],
                reason=Reason(step.reason if step else Reason.NO_EPISODE),
                epoch=tick.epoch,
                policy_version=step.policy_version if step else "",
                limited=step.limited if step else False,
            )
            decided = messages.executed_action_message(self._types, decision, tick.stamp_ns)
            self._put({topics.EXECUTED_ACTION: decided})
        end = self._tick(len(self._live), None, self._outcome == "success")
        self._put({topics.OBSERVATION_TICK: messages.tick_message(self._types, end, {})})

    def _tick(self, sequence: int, step: Step | None, success: bool = False) -> Tick:
        """The tick of a step; the epoch grows with every change of who decides."""
        before, live = (
            self._live[max(sequence - 1, 0)],
            self._live[min(sequence, len(self._live) - 1)],
        )
        self._last = Tick(
            self._info.episode_id,
            sequence,
            step.stamp_ns if step else self._last.stamp_ns + (PERIOD_NS if sequence else 0),
            applied_sequence=sequence - 1,
            applied=Applied.APPLIED if sequence else Applied.NO_DECISION,
            authority=AUTHORITY[before],
            epoch=self._last.epoch + (live != before),
            success=success,
        )
        return self._last

    def _command(self, tick: Tick, step: Step) -> None:
        """What the policy answered, where it is known how sure it was."""
        if step.live != POLICY or np.isnan(step.confidence):
            return
        command = PolicyCommand(
            tick.episode_id,
            step.sequence,
            tick.epoch,
            step.policy_version,
            step.action[None],
            step.confidence,
        )
        message = messages.policy_action_message(self._types, command, tick.stamp_ns)
        self._put({topics.POLICY_ACTION: message})

    def _put(self, built: dict) -> None:
        for topic, message in built.items():
            self._writer.write_message(topic, message, self._last.stamp_ns)
