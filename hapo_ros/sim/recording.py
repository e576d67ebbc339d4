"""The messages of a synchronous episode, in the form that the recorder node gives a bag."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hapo_ros import topics
from hapo_ros.arbitration import Arbiter, Decision, HumanSample, PolicyCommand, Tick
from hapo_ros.episodes import messages
from hapo_ros.episodes.types import EpisodeInfo, Observation
from hapo_ros.episodes.writer import EpisodeWriter


class EpisodeRecord:
    """What happens in one episode, as messages into its bag; nowhere where ``writer`` is None."""

    def __init__(self, writer: EpisodeWriter | None, info: EpisodeInfo):
        self._writer, self._info = writer, info
        self._types = messages.bag_types() if writer else None
        self._counts = np.zeros(4, np.uint32)
        self._status = None

    def observed(self, observation: Observation, tick: Tick) -> None:
        """A tick and what belongs to it."""
        if self._writer:
            self._write(
                messages.observation_messages(
                    self._types, observation, tick, self._info.object_state
                ),
                tick,
            )

    def answered(
        self, tick: Tick, command: PolicyCommand | None, human: Sequence[HumanSample]
    ) -> None:
        """What policy and operator made of it."""
        if not self._writer:
            return
        for sample in human:
            self._write(
                messages.operator_messages(
                    self._types, sample.axes, sample.buttons, sample.twist, sample.stamp_ns
                ),
                tick,
            )
        if command is not None:
            message = messages.policy_action_message(self._types, command, tick.stamp_ns)
            self._write({topics.POLICY_ACTION: message}, tick)

    def decided(self, tick: Tick, decision: Decision, arbiter: Arbiter, now_s: float) -> None:
        """The arbiter's decision, and its status where that changed."""
        if not self._writer:
            return
        self._counts[decision.label] += 1
        message = messages.executed_action_message(self._types, decision, tick.stamp_ns)
        self._write({topics.EXECUTED_ACTION: message}, tick)
        if (decision.authority, decision.reason) == self._status:
            return
        self._status = decision.authority, decision.reason
        status = messages.authority_status_message(
            self._types,
            tick.stamp_ns,
            *self._status,
            episode_id=tick.episode_id,
            sequence=tick.sequence,
            epoch=decision.epoch,
            device_live=arbiter.device_live(now_s),
            device_armed=arbiter.armed,
            takeovers=arbiter.takeovers,
            labels=self._counts,
        )
        self._write({topics.AUTHORITY_STATUS: status}, tick)

    def finished(self, outcome: str, note: str, unresolved: bool) -> Path | None:
        """The outcome; returns the bag's folder."""
        if self._writer is None:
            return None
        return self._writer.finish(self._writer.result(outcome, note=note, unresolved=unresolved))

    def _write(self, built: dict, tick: Tick) -> None:
        for topic, message in built.items():
            self._writer.write_message(topic, message, tick.stamp_ns)
