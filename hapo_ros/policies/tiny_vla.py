"""tiny_vla: a vision-language-action policy small enough for two CPU cores.

Images and / or an object-state vector, instruction words and proprioception go through a small
causal transformer that answers with D action tokens for each of T steps.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hapo_ros.episodes.types import Observation
from hapo_ros.policies.base import PROPRIO_DIM, Batch, Scored, proprioception
from hapo_ros.policies.network import Network
from hapo_ros.policies.tokenizers import UniformBins, Words

SMALLEST_STD = 0.01  # metres, mostly: what never moved in training may move by this much later


@dataclass(frozen=True)
class TinyVlaConfig:
    """Shapes of a policy. cameras: name -> (height, width); object_state: its size, 0 for none."""

    cameras: dict[str, tuple[int, int]]
    object_state: int
    action_names: tuple[str, ...]
    horizon: int = 1
    bins: int = 256
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


class TinyVla:
    """The policy; see :class:`hapo_ros.policies.base.Policy` for what each member means."""

    family = "tiny_vla"

    def __init__(self, config: TinyVlaConfig, normalisation: Normalisation, words: Words):
        self.config, self.normalisation, self.words = config, normalisation, words
        self.version, self.confidence = "", float("nan")
        self.bins = UniformBins(config.bins)
        self.cameras = {name: tuple(size) for name, size in config.cameras.items()}
        self.object_state, self.horizon = config.object_state, config.horizon
        self.action_names = tuple(config.action_names)
        self.token_names = self.action_names * config.horizon
        self.feature_size = config.width
        numbers = {"proprio": PROPRIO_DIM}
        if config.object_state:
            numbers["object_state"] = config.object_state
        self.network = Network(
            words=len(words),
            word_count=words.length,
            cameras=list(self.cameras),
            numbers=numbers,
            tokens=len(self.token_names),
            bins=config.bins,
            width=config.width,
            blocks=config.blocks,
            heads=config.heads,
            scales=config.scales,
        )
        self._check_shapes()
        self._constants = {k: torch.as_tensor(v) for k, v in asdict(normalisation).items()}

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
        return self.network.start.device

    def to(self, device) -> "TinyVla":
        """Move weights and statistics to a device; batches follow by themselves."""
        self.network.to(device)
        self._constants = {k: v.to(device) for k, v in self._constants.items()}
        return self

    # Acting

    @torch.inference_mode()
    def act(self, observation: Observation, instruction: str) -> np.ndarray:
        """(T, D) float32 in the action space, the most probable token at each place.

        Raises ValueError where the observation lacks something the policy was trained with.
        """
        tokens, probabilities = self._generate(
            self.forward_observation(self.batch_of(observation, instruction)), 1
        )
        self.confidence = float(probabilities.mean())
        return self._decode(tokens)[0].cpu().numpy()

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

    # Scoring

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

    def score(self, batch: Batch, prefix=None, generate: bool = False) -> Scored:
        if prefix is None:
            prefix = self.forward_observation(batch)
        tokens, mask = self._tokens(batch)
        logits = self._teacher_forced(prefix, tokens)
        logps = F.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
        with torch.no_grad():
            best = self._generate(prefix, len(batch))[0] if generate else logits.argmax(-1)
            recorded = self._normalise(batch.actions.to(self.device)).flatten(1)
            error = (self.bins.decode(best) - recorded).abs() * mask
            l1 = error.sum(1) / mask.sum(1).clamp(min=1)
        return Scored(logps, mask, l1, torch.ones(len(batch), dtype=torch.bool, device=self.device))

    def log_prob(self, batch: Batch):
        scored = self.score(batch)
        return scored.logps, scored.mask

    @torch.no_grad()
    def predict(self, batch: Batch, generate: bool = False, noise=None):
        prefix = self.forward_observation(batch)
        if generate:
            return self._decode(self._generate(prefix, len(batch))[0], noise)
        return self._decode(self._teacher_forced(prefix, self._tokens(batch)[0]).argmax(-1), noise)

    def bc_loss(self, batch: Batch):
        return self.score(batch).mean_nll()

    def logits(self, batch: Batch):
        """(B, N, bins) teacher-forced logits."""
        return self._teacher_forced(self.forward_observation(batch), self._tokens(batch)[0])

    def _teacher_forced(self, prefix, tokens):
        return self.network.slot_logits(prefix, tokens.roll(1, 1))[0]

    def _generate(self, prefix, count: int):
        """Greedy (B, N) tokens and their (B, N) probabilities, one slot after the other."""
        token = torch.zeros(count, 1, dtype=torch.long, device=self.device)
        tokens, probabilities = [], []
        for slot in range(len(self.token_names)):
            logits, prefix = self.network.slot_logits(prefix, token, slot)
            probability, token = logits[:, 0].softmax(-1).max(-1, keepdim=True)
            tokens.append(token)
            probabilities.append(probability)
        return torch.cat(tokens, 1), torch.cat(probabilities, 1)

    def _tokens(self, batch: Batch):
        """(B, N) tokens of the recorded actions and their (B, N) mask."""
        tokens = self.bins.encode(self._normalise(batch.actions.to(self.device))).flatten(1)
        return tokens, batch.action_mask.to(self.device).repeat_interleave(
            len(self.action_names), 1
        )

    def _normalise(self, actions):
        low, high = self._constants["action_low"], self._constants["action_high"]
        return 2.0 * (actions - low) / (high - low) - 1.0

    def _decode(self, tokens, noise=None):
        """(B, N) tokens -> (B, T, D) actions in the action space; noise: see ``predict``."""
        low, high = self._constants["action_low"], self._constants["action_high"]
        values = self.bins.decode(tokens).unflatten(1, (self.horizon, -1))
        if noise is not None:
            values = values + noise.to(values)
        return low + (values + 1.0) / 2.0 * (high - low)

    # Saving

    def parts(self) -> dict[str, dict]:
        return {
            "config": asdict(self.config),
            "normalisation": self.normalisation.as_dict(),
            "tokenizer": {
                "actions": "uniform_bins",
                "words": list(self.words.vocabulary),
                "word_count": self.words.length,
            },
        }

    @classmethod
    def from_parts(cls, config: dict, normalisation: dict, tokenizer: dict) -> "TinyVla":
        config = {**config, "action_names": tuple(config["action_names"])}
        return cls(
            TinyVlaConfig(**config),
            Normalisation.from_dict(normalisation),
            Words(tokenizer["words"], tokenizer["word_count"]),
        )
