"""What the small policies of this package share: what they see, their shapes and statistics.

A family adds how actions come out: as tokens one after the other, or by integrating a flow.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch

from hapo_ros.episodes.types import Observation
from hapo_ros.policies.base import PROPRIO_DIM, Batch, proprioception
from hapo_ros.policies.tokenizers import Words

SMALLEST_STD = 0.01  # metres, mostly: what never moved in training may move by this much later


@dataclass(frozen=True)
class SmallConfig:
    """Shapes of a policy. cameras: name -> (height, width); object_state: its size, 0 for none.
    horizon: T, actions of a chunk."""

    cameras: dict[str, tuple[int, int]]
    object_state: int
    action_names: tuple[str, ...]
    horizon: int = 1
    width: int = 128
    blocks: int = 4
    heads: int = 4
    scales: int = 4

    def __post_init__(self):
        if not self.cameras and not self.object_state:
            raise ValueError("A policy needs a camera or an object state to see the task with.")
        if not self.action_names or self.horizon < 1:
            raise ValueError("A policy needs named action dimensions and a horizon of at least 1.")


@dataclass(frozen=True)
class Normalisation:
    """Statistics a policy was trained with.

    action_low, action_high: (D,) what -1 and 1 mean in the action space; the action space is
    [-1, 1] itself, so they are -1 and 1 unless set. *_mean, *_std: (P,) and (S,).
    """

    action_low: np.ndarray
    action_high: np.ndarray
    proprio_mean: np.ndarray
    proprio_std: np.ndarray
    object_mean: np.ndarray
    object_std: np.ndarray

    @classmethod
    def fit(cls, action_dim: int, proprio, object_state=None) -> "Normalisation":
        """From (N, P) proprioception and (N, S) object states; every std is at least 0.01."""
        state = np.zeros((1, 0), np.float32) if object_state is None else object_state
        values = [-np.ones(action_dim), np.ones(action_dim)]
        for array in (np.asarray(proprio, np.float64), np.asarray(state, np.float64)):
            values += [array.mean(0), np.maximum(array.std(0), SMALLEST_STD)]
        return cls(*(np.asarray(v, np.float32) for v in values))

    def as_dict(self) -> dict:
        return {key: [float(x) for x in value] for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict) -> "Normalisation":
        return cls(**{key: np.asarray(value, np.float32) for key, value in data.items()})


@dataclass(frozen=True)
class Recorded:
    """What an untrained policy is made for: M recorded steps, all by one robot.

    images: camera -> (M, H, W, 3). proprio: (M, P). object_state: (M, S). actions: (M, T, D) in the
    action space, action_mask (M, T). Whatever the policy is not to see is left out or None.
    """

    images: dict
    proprio: np.ndarray
    object_state: np.ndarray | None
    actions: np.ndarray
    action_mask: np.ndarray
    action_names: tuple[str, ...]
    instructions: set[str]


class SmallPolicy:
    """The part of :class:`hapo_ros.policies.base.Policy` that does not depend on the family.

    A family sets ``network`` (an ``Observer``) in ``__init__``, and names its ``Config`` and the
    settings of method ``bc`` that are fields of it. What else its ``__init__`` takes comes from
    ``_fitted`` and ``_stored``.
    """

    family: ClassVar[str]
    whole_chunks: ClassVar[bool] = False
    Config: ClassVar[type[SmallConfig]]
    SIZES: ClassVar[tuple[str, ...]] = ("horizon", "width", "blocks")
    needs_draws: ClassVar[bool] = False

    def __init__(self, config: SmallConfig, normalisation: Normalisation, words: Words):
        self.config, self.normalisation, self.words = config, normalisation, words
        self.version, self.confidence = "", float("nan")
        self.cameras = {name: tuple(size) for name, size in config.cameras.items()}
        self.object_state = config.object_state
        self.horizon = self.executed = self.ratio_actions = config.horizon
        self.action_names = tuple(config.action_names)
        self.feature_size = config.width
        self._check_shapes()
        self._constants = {k: torch.as_tensor(v) for k, v in asdict(normalisation).items()}

    @classmethod
    def untrained(cls, recorded: Recorded, settings: dict, seed: int) -> "SmallPolicy":
        """A policy for what was recorded; settings: of method ``bc``. The same seed gives the same
        weights."""
        state = recorded.object_state
        config = cls.Config(
            cameras={name: x.shape[1:3] for name, x in recorded.images.items()},
            object_state=0 if state is None else state.shape[1],
            action_names=recorded.action_names,
            **{name: settings[name] for name in cls.SIZES if settings[name] is not None},
        )
        normalisation = Normalisation.fit(len(recorded.action_names), recorded.proprio, state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            words = Words.fit(recorded.instructions)
            return cls(config, normalisation, words, *cls._fitted(config, normalisation, recorded))

    @classmethod
    def _fitted(cls, config: SmallConfig, normalisation: Normalisation, recorded: Recorded):
        """What else ``__init__`` takes, made for what was recorded."""
        return ()

    @classmethod
    def _stored(cls, tokenizer: dict):
        """The same, from ``parts``'s tokenizer."""
        return ()

    def _observer(self) -> dict:
        """Arguments of ``network.Observer`` and of its blocks for this policy."""
        numbers = {"proprio": PROPRIO_DIM}
        if self.object_state:
            numbers["object_state"] = self.object_state
        config = self.config
        return {
            "words": len(self.words),
            "word_count": self.words.length,
            "cameras": list(self.cameras),
            "numbers": numbers,
            "width": config.width,
            "blocks": config.blocks,
            "heads": config.heads,
            "scales": config.scales,
        }

    def _check_shapes(self) -> None:
        sizes = {
            "action": len(self.action_names),
            "proprio": PROPRIO_DIM,
            "object": self.object_state,
        }
        for key, value in asdict(self.normalisation).items():
            if value.shape != (sizes[key.split("_")[0]],):
                raise ValueError(
                    f"Normalisation {key} has shape {value.shape}, which does not fit the policy's "
                    "configuration. The files of this policy do not belong together."
                )

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device) -> "SmallPolicy":
        """Move weights and statistics to a device; batches follow by themselves."""
        self.network.to(device)
        self._constants = {k: v.to(device) for k, v in self._constants.items()}
        return self

    # Observing

    def batch_of(self, observation: Observation, instruction: str) -> Batch:
        """A batch of one observation without actions."""
        images = {}
        for name, (height, width) in self.cameras.items():
            image = observation.images.get(name)
            if image is None or image.shape != (height, width, 3) or image.dtype != np.uint8:
                got = "nothing" if image is None else f"{image.shape} {image.dtype}"
                raise ValueError(
                    f"The policy was trained with camera {name!r} at {height} x {width} x 3 uint8 "
                    f"and got {got}, so it cannot act. Configure the camera as it was in training."
                )
            images[name] = torch.from_numpy(np.ascontiguousarray(image)[None])
        state = None
        if self.object_state:
            given = observation.object_state
            if given is None or np.shape(given) != (self.object_state,):
                raise ValueError(
                    f"The policy was trained with an object state of {self.object_state} numbers "
                    f"and got {'none' if given is None else np.shape(given)}, so it cannot act."
                )
            state = torch.as_tensor(np.asarray(given, np.float32)[None])
        proprio = torch.from_numpy(proprioception(observation)[None])
        return Batch(images, proprio, state, [instruction])

    def example(self, brightness: int = 127) -> Observation:
        images = {
            name: np.full((*size, 3), brightness, np.uint8) for name, size in self.cameras.items()
        }
        state = self.normalisation.object_mean.astype(np.float64) if self.object_state else None
        pose = np.r_[self.normalisation.proprio_mean[:3], 1.0, 0.0, 0.0, 0.0]
        return Observation(images, np.zeros(9), pose.astype(np.float64), state)

    def forward_observation(self, batch: Batch):
        return self._observe(batch)[1]

    def features(self, batch: Batch):
        return self.network.summary(self._observe(batch)[0])

    def _observe(self, batch: Batch):
        c, device = self._constants, self.device
        words = np.stack([self.words.encode(text) for text in batch.instructions])
        numbers = {"proprio": (batch.proprio.to(device) - c["proprio_mean"]) / c["proprio_std"]}
        if self.object_state:
            state = batch.object_state.to(device)
            numbers["object_state"] = (state - c["object_mean"]) / c["object_std"]
        images = {name: batch.images[name].to(device) for name in self.cameras}
        return self.network.observe(torch.from_numpy(words).to(device), images, numbers)

    # Actions

    def _normalise(self, actions):
        """Actions in the action space -> normalised units, [-1, 1]."""
        low, high = self._constants["action_low"], self._constants["action_high"]
        return 2.0 * (actions - low) / (high - low) - 1.0

    def _denormalise(self, values):
        low, high = self._constants["action_low"], self._constants["action_high"]
        return low + (values + 1.0) / 2.0 * (high - low)

    # Saving

    def parts(self) -> dict[str, dict]:
        return {
            "config": asdict(self.config),
            "normalisation": self.normalisation.as_dict(),
            "tokenizer": {"words": list(self.words.vocabulary), "word_count": self.words.length},
        }

    @classmethod
    def from_parts(cls, config: dict, normalisation: dict, tokenizer: dict) -> "SmallPolicy":
        config = {**config, "action_names": tuple(config["action_names"])}
        return cls(
            cls.Config(**config),
            Normalisation.from_dict(normalisation),
            Words(tokenizer["words"], tokenizer["word_count"]),
            *cls._stored(tokenizer),
        )
