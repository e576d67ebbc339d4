"""Reading one episode: its steps as they were decided and applied, and their labels.

Joined by (episode_id, sequence) and by the stamps that the tick names, never by nearest time.
Labels come about in this order: what the bag says (``live``), then the relabelling with K, then
the review, which is final.
"""

from pathlib import Path

import numpy as np

from hapo_ros import labels as label_rules
from hapo_ros import topics
from hapo_ros.arbitration.types import Applied, Reason
from hapo_ros.episodes import parsers, reviews
from hapo_ros.episodes.contents import BadEpisode, cdr_stamp_ns, load, messages
from hapo_ros.episodes.interfaces import from_cdr
from hapo_ros.episodes.types import EpisodeInfo, EpisodeResult, Observation, Step, in_words

_NUMBERS = {topics.JOINT_STATE: "position", topics.OBJECT_STATE: "values"}  # of a state


class EpisodeReader:
    """One recorded episode. path: its folder.

    The bag is read and checked from end to end at once; images are decoded in :meth:`steps` only.
    A bag that was recovered, whose recording ended early or lost too much is refused without
    ``accept_recovered``.

    Attributes: path, info, result, bag_hash (SHA-256 of the MCAP file), review (what people
    decided since; empty where ``use_review`` is false), counts (messages by topic), sequences (T,)
    int64 of the steps, timeline (S,) int64 live labels of all control steps, live (T,) int64 of the
    steps, lost_steps (decided ticks of which a message is missing).

    ``sequences`` rise, with a gap where a step's observation was lost. Raises BadEpisode.
    """

    def __init__(
        self, path: str | Path, *, accept_recovered: bool = False, use_review: bool = True
    ):
        self.path = Path(path)
        contents = self._contents = load(self.path)
        self.info: EpisodeInfo = contents.info
        self.result: EpisodeResult = contents.result
        if not accept_recovered and self.result.recovered:
            raise BadEpisode("recovered", self.path, self.result.note)
        if not accept_recovered and not self.result.complete:
            raise BadEpisode("incomplete", self.path, self.result.note)
        self.bag_hash = contents.bag_hash
        self.review = self._read_review() if use_review else reviews.Review()
        unused = self.outcome == "discarded"  # whatever was under way when it was
        if not accept_recovered and self.result.lossy and not unused:
            raise BadEpisode("lossy", self.path, f"({in_words(self.result.lost)})")
        self.counts = dict(contents.counts)
        decided = contents.decisions
        if not decided:
            raise BadEpisode("no labels", self.path)
        if len({decision.action.size for decision in decided.values()}) > 1:
            raise BadEpisode("malformed", self.path, "Its actions differ in length.")
        self.timeline = self._live_timeline()
        whole = [s for s in range(len(self.timeline)) if self._is_whole(s)]
        self.sequences = np.array(whole, np.int64)
        self.live = self.timeline[self.sequences]
        self.lost_steps = len(decided.keys() - set(whole))
        if not whole:
            raise BadEpisode("no labels", self.path, "No step's observation is whole.")
        if varies := self._topics_of_varying_length():
            raise BadEpisode("malformed", self.path, f"Its {', '.join(varies)} differ in length.")

    @property
    def outcome(self) -> str:
        """success | failure | discarded: the reviewer's word, or else as recorded."""
        return self.review.outcome or self.result.outcome

    @property
    def excluded(self) -> bool:
        """Whether a reviewer took the episode out."""
        return self.review.excluded

    @property
    def review_hash(self) -> str:
        """SHA-256 of review.json beside the bag, "" where there is none."""
        return self.review.hash

    @property
    def policy_versions(self) -> list[str]:
        """Versions of the policies whose decisions the steps are."""
        decided = (self._contents.decisions.get(s) for s in self.sequences.tolist())
        return sorted({each.policy_version for each in decided if each is not None} - {""})

    def labels(self, k: int = label_rules.DEFAULT_K) -> np.ndarray:
        """(T,) int64 c_t of the steps: the bag's, relabelled with K (method.md 1.1), reviewed.

        K counts control steps of the episode, those of lost observations included.
        """
        return final_labels(self.timeline, self.info.source, k, self.review)[self.sequences]

    def steps(self, k: int = label_rules.DEFAULT_K, images: bool = True) -> list[Step]:
        """The T steps; without ``images`` their observations have none, and it is fast.

        Raises BadEpisode where an image is malformed or of another size than the others.
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

    def tracks(self) -> dict[str, np.ndarray]:
        """The T steps as arrays, for who wants to see them all and no observation.

        stamp_ns (T,) int64; action, requested (T, D) float32, requested NaN on a hold; confidence
        (T,) float32, NaN where no policy acted; success (T,) bool, the task's own predicate;
        limited (T,) bool; reason (T,) uint8 of ``arbitration.types.Reason``.
        """
        contents, steps = self._contents, self.sequences.tolist()
        actions = self._actions()[self.sequences]
        requested = np.full_like(actions, np.nan)
        limited, reason = np.zeros(len(steps), bool), np.zeros(len(steps), np.uint8)
        for i, sequence in enumerate(steps):
            if (decision := contents.decisions.get(sequence)) is not None:
                limited[i], reason[i] = decision.limited, decision.reason
                if decision.requested.size:
                    requested[i] = decision.requested
        return {
            "stamp_ns": np.array([contents.ticks[s].stamp_ns for s in steps], np.int64),
            "action": actions,
            "requested": requested,
            "confidence": self._confidences()[self.sequences].astype(np.float32),
            "success": np.array([contents.ticks[s].success for s in steps], bool),
            "limited": limited,
            "reason": reason,
        }

    def _read_review(self) -> reviews.Review:
        try:
            review = reviews.read(self.path)
            reviews.require_same_bag(review, self.bag_hash)
        except reviews.ReviewError as error:
            raise BadEpisode("review", self.path, str(error)) from error
        return review

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

    def _topics_of_varying_length(self) -> list[str]:
        """Topics of states whose numbers are not as many in every step."""
        lengths: dict[str, set[int]] = {}
        for sequence in self.sequences.tolist():
            for topic, at in self._observed(sequence):
                if topic in _NUMBERS:
                    numbers = getattr(self._contents.states[topic, at], _NUMBERS[topic])
                    lengths.setdefault(topic, set()).add(len(numbers))
        return [topic for topic, found in lengths.items() if len(found) > 1]

    def _images(self) -> dict[tuple[str, int], np.ndarray]:
        """(topic, stamp) -> RGB of the images that belong to a step; no other is decoded."""
        cameras = set(map(topics.image, self.info.cameras))
        wanted = {key for sequence in self.sequences.tolist() for key in self._observed(sequence)}
        found, sizes = {}, {}
        try:
            for message in messages(self._contents.mcap_file):
                if message.topic.name not in cameras:
                    continue
                key = message.topic.name, cdr_stamp_ns(message.cdr)
                if key in wanted:
                    image = from_cdr(message.cdr, message.topic.type_name)
                    found[key] = parsers.image_from(image)
                    size = sizes.setdefault(key[0], found[key].shape)
                    if found[key].shape != size:
                        raise ValueError(f"the images on {key[0]} differ in size")
        except (ValueError, AttributeError) as error:
            raise BadEpisode("malformed", self.path, f"({error})") from error
        return found

    def _actions(self) -> np.ndarray:
        """(S, D) float32 executed actions; zero, the gripper as it was, where not applied.

        How the gripper was, the next tick says, or else the step before; the first tick at first.
        """
        decisions = self._contents.decisions
        size = next(iter(decisions.values())).action.size
        names = list(self.info.action_space.get("names") or ())[:size]
        gripper = [i for i, name in enumerate(names) if "gripper" in str(name)]
        actions = np.zeros((len(self.timeline), size), np.float32)
        drove = self._drove_until(0, actions[0].copy())
        for sequence in range(len(actions)):
            if self._was_applied(sequence):
                drove = actions[sequence] = decisions[sequence].action
            else:
                drove = self._drove_until(sequence + 1, drove)
                actions[sequence, gripper] = drove[gripper]
        return actions

    def _drove_until(self, sequence: int, otherwise: np.ndarray) -> np.ndarray:
        """(D,) what drove the robot until a tick; otherwise, where none says it, the given."""
        tick = self._contents.ticks.get(sequence)
        said = tick is not None and tick.applied_action.size == otherwise.size
        return tick.applied_action if said and np.isfinite(tick.applied_action).all() else otherwise

    def _confidences(self) -> np.ndarray:
        """(S,) confidence of the chunk, made under the step's epoch, that a policy step is from."""
        decisions = self._contents.decisions
        confidences = np.full(len(self.timeline), np.nan)
        for command in self._contents.commands:
            end = min(command.sequence + len(command.actions), len(confidences))
            for sequence in range(command.sequence, end):
                decision = decisions.get(sequence)
                if decision is not None and decision.epoch == command.epoch:
                    confidences[sequence] = command.confidence
        return np.where(self.timeline == label_rules.POLICY, confidences, np.nan)

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


def final_labels(timeline, source: str, k: int, review: reviews.Review) -> np.ndarray:
    """(S,) int64 c_t of all control steps: recorded (``timeline``), relabelled with K, reviewed."""
    if source == "demonstration":
        labels = label_rules.demonstration(timeline)
    else:
        labels = label_rules.relabel(timeline, k)
    return review.apply(labels)
