"""Reading one episode: its steps as they were decided and applied, and their labels.

Joined by (episode_id, sequence) and by the stamps that the tick names, never by nearest time.
Labels come about in this order: what the bag says (``live``), then the relabelling with K.
"""

from pathlib import Path

import numpy as np

from hapo_ros import labels as label_rules
from hapo_ros import topics
from hapo_ros.arbitration.types import Applied, Reason
from hapo_ros.episodes import parsers
from hapo_ros.episodes.contents import BadEpisode, load, messages, sha256
from hapo_ros.episodes.interfaces import from_cdr
from hapo_ros.episodes.types import EpisodeInfo, EpisodeResult, Observation, Step, in_words

REVIEW = "review.json"


class EpisodeReader:
    """One recorded episode. path: its folder.

    The bag is read and checked from end to end at once; images are decoded in :meth:`steps` only.
    A bag that was recovered, whose recording ended early or lost too much is refused without
    ``accept_recovered``.

    Attributes: path, info, result, bag_hash (SHA-256 of the MCAP file), review_hash (of
    review.json beside it, "" where there is none), counts (messages by topic), sequences (T,) int64
    of the steps, live (T,) int64, lost_steps (decided ticks of which a message is missing).

    ``sequences`` rise, with a gap where a step's observation was lost. Raises BadEpisode.
    """

    def __init__(self, path: str | Path, *, accept_recovered: bool = False):
        self.path = Path(path)
        contents = self._contents = load(self.path)
        self.info: EpisodeInfo = contents.info
        self.result: EpisodeResult = contents.result
        if not accept_recovered and self.result.recovered:
            raise BadEpisode("recovered", self.path, self.result.note)
        if not accept_recovered and not self.result.complete:
            raise BadEpisode("incomplete", self.path, self.result.note)
        unused = self.result.outcome == "discarded"  # whatever was under way when it was
        if not accept_recovered and self.result.lossy and not unused:
            raise BadEpisode("lossy", self.path, f"({in_words(self.result.lost)})")
        self.bag_hash = contents.bag_hash
        review = self.path / REVIEW
        self.review_hash = sha256(review) if review.is_file() else ""
        self.counts = dict(contents.counts)
        decided = contents.decisions
        if not decided:
            raise BadEpisode("no labels", self.path)
        if len({decision.action.size for decision in decided.values()}) > 1:
            raise BadEpisode("malformed", self.path, "Its actions differ in length.")
        self._timeline = self._live_timeline()
        whole = [s for s in range(len(self._timeline)) if self._is_whole(s)]
        self.sequences = np.array(whole, np.int64)
        self.live = self._timeline[self.sequences]
        self.lost_steps = len(decided.keys() - set(whole))
        if not whole:
            raise BadEpisode("no labels", self.path, "No step's observation is whole.")

    def labels(self, k: int = label_rules.DEFAULT_K) -> np.ndarray:
        """(T,) int64 c_t of the steps: the bag's, then relabelled with K (method.md 1.1).

        K counts control steps of the episode, those of lost observations included.
        """
        if self.info.source == "demonstration":
            timeline = label_rules.demonstration(self._timeline)
        else:
            timeline = label_rules.relabel(self._timeline, k)
        return timeline[self.sequences]

    def steps(self, k: int = label_rules.DEFAULT_K, images: bool = True) -> list[Step]:
        """The T steps; without ``images`` their observations have none, and it is fast.

        Raises BadEpisode where an image is malformed.
        """
        contents = self._contents
        pictures = self._images() if images else {}
        actions, confidences = self._actions(), self._confidences()
        nothing = np.zeros(0, np.float32)
        steps = []
        for sequence, live, label in zip(
            self.sequences.tolist(), self.live.tolist(), self.labels(k).tolist(), strict=True
        ):
            decision = contents.decisions.get(sequence)
            steps.append(
                Step(
                    sequence=sequence,
                    stamp_ns=contents.ticks[sequence].stamp_ns,
                    observation=self._observation(sequence, pictures),
                    action=actions[sequence],
                    requested=decision.requested if decision else nothing,
                    live=live,
                    label=label,
                    policy_version=decision.policy_version if decision else "",
                    limited=decision.limited if decision else False,
                    reason=int(decision.reason if decision else Reason.NO_EPISODE),
                    confidence=float(confidences[sequence]),
                )
            )
        return steps

    def _live_timeline(self) -> np.ndarray:
        """(S,) live labels of every control step 0 .. last decided, NONE where not applied."""
        contents = self._contents
        timeline = np.full(max(contents.decisions) + 1, label_rules.NONE)
        for sequence, decision in contents.decisions.items():
            if self._was_applied(sequence):
                timeline[sequence] = decision.label
        return timeline

    def _was_applied(self, sequence: int) -> bool:
        contents = self._contents
        return (
            sequence in contents.decisions
            and sequence not in contents.ambiguous
            and contents.outcomes.get(sequence) == Applied.APPLIED
        )

    def _observed(self, sequence: int) -> list[tuple[str, int]] | None:
        """(topic, stamp) of what a step's observation needs; None where the tick lacks one."""
        needed = topics.observed(self.info.cameras, bool(self.info.object_state))
        stamps = self._contents.stamps.get(sequence, {})
        if not all(topic in stamps for topic in needed):
            return None
        return [(topic, stamps[topic]) for topic in needed]

    def _is_whole(self, sequence: int) -> bool:
        contents, observed = self._contents, self._observed(sequence)
        return observed is not None and all(
            key in contents.states or key in contents.image_stamps for key in observed
        )

    def _images(self) -> dict[tuple[str, int], np.ndarray]:
        """(topic, stamp) -> RGB of the cameras' images."""
        wanted = set(map(topics.image, self.info.cameras))
        found = {}
        try:
            for message in messages(self._contents.mcap_file):
                if message.topic.name in wanted:
                    image = from_cdr(message.cdr, message.topic.type_name)
                    key = message.topic.name, parsers.message_stamp_ns(image)
                    found[key] = parsers.image_from(image)
        except (ValueError, AttributeError) as error:
            raise BadEpisode("malformed", self.path, f"({error})") from error
        return found

    def _actions(self) -> np.ndarray:
        """(S, D) float32 executed actions; zero, the gripper as it was, where not applied."""
        decisions = self._contents.decisions
        size = next(iter(decisions.values())).action.size
        names = list(self.info.action_space.get("names") or ())[:size]
        gripper = [i for i, name in enumerate(names) if "gripper" in str(name)]
        actions = np.zeros((len(self._timeline), size), np.float32)
        for sequence in range(len(actions)):
            if self._was_applied(sequence):
                actions[sequence] = decisions[sequence].action
            elif sequence:
                actions[sequence, gripper] = actions[sequence - 1, gripper]
        return actions

    def _confidences(self) -> np.ndarray:
        """(S,) confidence of the chunk, made under the step's epoch, that a policy step is from."""
        decisions = self._contents.decisions
        confidences = np.full(len(self._timeline), np.nan)
        for command in self._contents.commands:
            end = min(command.sequence + len(command.actions), len(confidences))
            for sequence in range(command.sequence, end):
                decision = decisions.get(sequence)
                if decision is not None and decision.epoch == command.epoch:
                    confidences[sequence] = command.confidence
        return np.where(self._timeline == label_rules.POLICY, confidences, np.nan)

    def _observation(self, sequence: int, pictures: dict) -> Observation:
        states, seen = self._contents.states, dict(self._observed(sequence))
        observation = parsers.observation_from(
            {topic: states[topic, at] for topic, at in seen.items() if (topic, at) in states}
        )
        if pictures:
            observation.images = {
                camera: pictures[topics.image(camera), seen[topics.image(camera)]]
                for camera in self.info.cameras
            }
        return observation
