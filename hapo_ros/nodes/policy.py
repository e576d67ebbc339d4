"""The policy node: answers every tick that asks, and swaps checkpoints while it serves.

In real time what comes too late is of no use to anyone: of the ticks that wait only the newest is
answered, and an answer that was overtaken by a newer tick, or by its deadline, is not sent. In
lock-step (no deadline) nothing is late, and every tick that asks is answered.
"""

import os
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionServer, GoalResponse
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from hapo_ros import topics
from hapo_ros.action import LoadPolicy
from hapo_ros.arbitration import PolicyCommand
from hapo_ros.episodes import messages
from hapo_ros.msg import EpisodeState, ObservationTick, PolicyAction, StateVector
from hapo_ros.nodes.common import (
    COMMAND,
    IMAGES,
    LATCHED,
    RECORD,
    FatalError,
    HapoNode,
    run,
)
from hapo_ros.nodes.joining import TickJoiner
from hapo_ros.nodes.polling import WatchedWhile, taken
from hapo_ros.parameters import PARAMETERS
from hapo_ros.policies import checkpoint
from hapo_ros.policies.base import finite_act, form, is_action
from hapo_ros.policies.promoted import current, written_ns

END_S = 2.0  # that a load which is given up is waited for


def load_policy(folder: str, tell=lambda stage: None):
    """Load, check and warm up a checkpoint. Raises ValueError or OSError with a sentence.

    tell: is called at every stage, some of them several times, and may raise to give it up.
    """
    tell("loading")
    policy = checkpoint.load(folder)
    tell("checking")
    checkpoint.check(policy)
    for _ in range(3):
        tell("warming_up")
        policy.act(policy.example(), "")
    return policy


class PolicyNode(HapoNode):
    """Serves one checkpoint."""

    def __init__(self):
        super().__init__("policy", PARAMETERS["policy"])
        import torch

        torch.set_num_threads(self.parameters.threads)
        try:
            self._folder = self._first()
            self._policy = load_policy(self._folder)
        except (ValueError, OSError) as error:
            raise FatalError(f"{error} The policy does not start.") from error
        self._episode = None
        self._answer = None  # the last answer: sent again when its tick comes again
        self._tick_received_s = self.now_s()
        self._counts = Counter(answered=0, undecodable=0, late=0, refused=0)
        self._missed = 0  # all but answered ones, when last diagnosed
        self._inference_s = 0.0  # of the last answer
        self._loading = None
        self._overtaken = self.create_guard_condition(self._answer_if_complete)

        wanted = {topics.JOINT_STATE: JointState, topics.EEF_POSE: PoseStamped}
        wanted |= {topics.image(camera): Image for camera in self._policy.cameras}
        if self._policy.object_state:
            wanted[topics.OBJECT_STATE] = StateVector
        self._joiner = TickJoiner(wanted)
        self._info = self.create_publisher(String, topics.POLICY_INFO, LATCHED)
        self._announce()  # before there are answers: an episode is to know whose they are
        self._actions = self.create_publisher(PolicyAction, topics.POLICY_ACTION, COMMAND)
        self._parts = {
            topic: self.create_subscription(
                type_,
                topic,
                lambda message, topic=topic: self._on_message(topic, message),
                IMAGES if type_ is Image else RECORD,
                callback_group=WatchedWhile(lambda topic=topic: topic in self._joiner.missing()),
            )
            for topic, type_ in wanted.items()
        }
        self._ticks = self.create_subscription(
            ObservationTick, topics.OBSERVATION_TICK, self._on_tick, RECORD
        )
        self.create_subscription(EpisodeState, topics.EPISODE_STATE, self._on_episode, LATCHED)
        self._server = ActionServer(
            self,
            LoadPolicy,
            topics.LOAD_POLICY,
            execute_callback=self._finish_loading,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._start_loading,
        )
        self._loading_watch = self.every(0.02, self._watch_loading)
        self._loading_watch.cancel()  # every round of a timer costs, and loads are rare
        self.diagnose(self._diagnosis)

    def _first(self) -> str:
        """The checkpoint to begin with: what was promoted, what this served before it crashed."""
        own = self.parameters
        known_ns, _, before = self.word_left.partition(" ")
        known_ns = int(known_ns) if before else own.promoted_ignored_ns
        newer = current(own.promoted, known_ns) if own.promoted else ""
        if newer and own.checkpoint not in ("", newer):
            needs, has = checkpoint.form_of(newer), checkpoint.form_of(own.checkpoint)
            if misfit := _misfit(newer, needs, has):  # promoted where this deployment was not seen
                self.get_logger().error(
                    f"{newer} was promoted and is not served: {misfit} Or promote one that fits."
                )
                newer = ""
        return newer or before or own.checkpoint

    def _announce(self) -> None:
        self.publish_info(
            self._info,
            {
                "version": self._policy.version,
                "family": self._policy.family,
                "checkpoint": str(Path(self._folder).resolve()),
                "normalisation": self._policy.parts()["normalisation"],
            },
        )
        self.until_heard(self._info)
        self.get_logger().info(f"Serving {self._policy.version} from {self._folder}.")

    # Answers

    def _on_episode(self, message: EpisodeState) -> None:
        self._episode = message if message.state == EpisodeState.RUNNING else None
        if self._loading is not None and self._episode is not None:
            self._loading.give_up(self._refusal())  # it would only make answers late
        self._answer_if_complete()

    def _on_message(self, topic: str, message) -> None:
        """What a tick has waited for."""
        self._joiner.add(topic, message)
        self._answer_if_complete()

    def _take_parts(self) -> None:
        for topic, subscription in self._parts.items():
            for message in taken(subscription):
                self._joiner.add(topic, message)

    def _on_tick(self, message: ObservationTick) -> None:
        self._take_tick((self._newer() or [message])[-1])
        self._answer_if_complete()

    def _take_tick(self, message: ObservationTick) -> None:
        self._tick_received_s = self.now_s()
        if self._answer is not None and _key(self._answer) == _key(message):
            self._actions.publish(self._answer)
        elif message.policy_due:
            try:
                if lacking := self._parts.keys() - set(message.topics):
                    raise ValueError(f"it has no {', '.join(sorted(lacking))} for the policy")
                self._joiner.add_tick(message)
            except ValueError as error:
                self._refuse(message, error)
            else:
                self._take_parts()

    def _refuse(self, tick: ObservationTick, error: ValueError) -> None:
        self._counts["refused"] += 1
        self.get_logger().error(
            f"Tick {tick.sequence} of {tick.episode_id} is not answered: {error}. The arm holds. "
            f"{self._counts['refused']} so far; look at who publishes this.",
            throttle_duration_sec=1.0,
        )

    def _answer_if_complete(self) -> None:
        tick_id = self._joiner.tick_episode_id
        if self._episode is None or tick_id != self._episode.episode_id:
            return
        if self._actions.get_subscription_count() < self.parameters.readers:
            return
        complete = self._joiner.take()
        if complete is None:
            return
        message, parts = complete
        began_s = self.now_s()
        try:
            tick = messages.tick_from(message)
            observation = messages.observation_from(parts)
            actions = finite_act(self._policy, observation, self._episode.instruction)
        except ValueError as error:
            self._refuse(message, error)
            return
        self._inference_s = self.now_s() - began_s
        if newer := [each for each in self._newer() if _key(each) != _key(message)]:
            self._give_up(tick, "the next tick was there before it")
            self._take_tick(newer[-1])
            # Not at once: a policy that is too slow is overtaken every time, and has to hear
            # meanwhile that the episode has ended, or that it is to end itself.
            self._overtaken.trigger()
            return
        took_s = self.now_s() - self._tick_received_s
        if self._hurries and took_s > self.parameters.deadline_s:
            self._give_up(tick, f"it took {took_s:.3f} s")
            return
        command = PolicyCommand(
            episode_id=tick.episode_id,
            sequence=tick.sequence,
            epoch=tick.epoch,
            version=self._policy.version,
            actions=np.asarray(actions, np.float32),
            confidence=self._policy.confidence,
            inference_s=self._inference_s,
        )
        self._answer = messages.policy_action_message(self.types, command, tick.stamp_ns)
        self._actions.publish(self._answer)
        if is_action(actions):
            self._counts["answered"] += 1
        else:
            self._note_undecodable(tick)

    @property
    def _hurries(self) -> bool:
        return self.parameters.deadline_s > 0.0

    def _newer(self) -> list[ObservationTick]:
        """Ticks that wait behind the present one, in real time."""
        return list(taken(self._ticks)) if self._hurries else []

    def _give_up(self, tick, why: str) -> None:
        """An answer that would come too late: the arbiter has decided without it."""
        self._counts["late"] += 1
        self.get_logger().warning(
            f"The answer to tick {tick.sequence} of {tick.episode_id} is too late: {why}. It is "
            f"not sent, the arm holds. {self._counts['late']} so far. Where this goes on, the "
            "policy is too slow for this machine.",
            throttle_duration_sec=1.0,
        )

    def _note_undecodable(self, tick) -> None:
        """It was sent all the same, for the arbiter to refuse: lock-step waits for an answer."""
        self._counts["undecodable"] += 1
        self.get_logger().warning(
            f"The answer to tick {tick.sequence} of {tick.episode_id} is no action: the policy's "
            f"tokens do not decode. The arm holds. {self._counts['undecodable']} so far. Where "
            "this goes on, train the policy for longer.",
            throttle_duration_sec=1.0,
        )

    def _diagnosis(self):
        counts = self._counts
        missed = counts.total() - counts["answered"]
        new, self._missed = missed - self._missed, missed
        level, text = DiagnosticStatus.OK, f"Serving {self._policy.version}."
        if new:
            level, text = DiagnosticStatus.WARN, f"{new} ticks got no action in time."
        known = {
            "version": self._policy.version,
            "episode": self._episode.episode_id if self._episode else "",
            "inference_s": f"{self._inference_s:.4f}",
        }
        return level, text, known | counts

    def shut_down(self) -> None:
        if self._loading is not None:
            self._loading.give_up("The policy node ends.")
            self._loading.join(END_S)

    # Loading

    def _on_goal(self, goal) -> GoalResponse:
        if self._loading is not None:
            self.get_logger().warning("Another checkpoint is being loaded. This one is refused.")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _start_loading(self, handle) -> None:
        self._loading = _Loading(handle, self._refusal())
        self._loading.start()
        self._loading_watch.reset()

    def _refusal(self) -> str:
        if self._episode is None:
            return ""
        return (
            f"Episode {self._episode.episode_id} is running. The policy stays "
            f"{self._policy.version}. End the episode, then load."
        )

    def _watch_loading(self) -> None:
        loading = self._loading
        ended = not loading.is_alive()
        while loading.stages:
            loading.handle.publish_feedback(LoadPolicy.Feedback(stage=loading.stages.pop(0)))
        if ended:
            self._loading_watch.cancel()
            loading.handle.execute()

    def _finish_loading(self, handle) -> LoadPolicy.Result:
        loading, self._loading = self._loading, None
        text = loading.problem or self._refusal() or self._objection(loading)
        ok = not text
        if not ok:
            self.get_logger().error(text)
            handle.abort()
        else:
            handle.publish_feedback(LoadPolicy.Feedback(stage="swapping"))
            self._policy, self._folder, self._answer = loading.policy, loading.folder, None
            # One that is started after a crash serves the same, also in an episode that runs on.
            known_ns = written_ns(self.parameters.promoted) if self.parameters.promoted else 0
            self.leave_word(f"{known_ns} {Path(self._folder).resolve()}")
            self._announce()
            handle.succeed()
            text = f"Serving {self._policy.version}."
        return LoadPolicy.Result(ok=ok, policy_version=self._policy.version, text=text)

    def _objection(self, loading: "_Loading") -> str:
        """Why what was loaded cannot take the place of what is served; empty if it can."""
        if loading.policy is None:
            return f"{loading.folder} cannot be loaded; the log says why. The policy stays."
        return _misfit(loading.folder, form(loading.policy), form(self._policy))


class _Loading(threading.Thread):
    """Loads a checkpoint beside the executor."""

    def __init__(self, handle, refusal: str):
        super().__init__(daemon=True)
        self.handle, self.folder, self.problem = handle, handle.request.checkpoint, refusal
        self.policy, self.stages, self._stage = None, [], ""

    def give_up(self, problem: str) -> None:
        """End it at its next stage."""
        self.problem = problem

    def run(self) -> None:
        try:
            self.policy = load_policy(self.folder, self._tell)
        except _GivenUp:
            return
        except (ValueError, OSError) as error:
            self.problem = f"{error} The policy that was served goes on."

    def _tell(self, stage: str) -> None:
        if self.problem:
            raise _GivenUp
        if stage != self._stage:
            self._stage = stage
            self.stages.append(stage)


class _GivenUp(Exception):
    """A load that is not wanted any more."""


def _misfit(folder: str, needs: str, has: str) -> str:
    """Why a checkpoint of one form cannot be served in a deployment of another; empty if it can."""
    if needs == has:
        return ""
    return (
        f"{folder} needs {needs}; this deployment has {has}. The policy stays. Start a deployment "
        "with that checkpoint."
    )


def _key(message) -> tuple[str, int]:
    """Which tick it is, or is the answer to."""
    return message.episode_id, message.sequence


def main(argv=None) -> int:
    code = run(PolicyNode, argv)
    if any(isinstance(thread, _Loading) for thread in threading.enumerate()):
        # Python would end under it, in the middle of torch, which aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
