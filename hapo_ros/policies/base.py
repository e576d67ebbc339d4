"""What a policy takes, gives and offers, whatever its family."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hapo_ros.episodes.types import Observation

if TYPE_CHECKING:
    import torch

PROPRIO_DIM = 11
FINGERS = 2


def proprioception(observation: Observation) -> np.ndarray:
    """(11,) float32: position (3, m), rotation (6), finger positions (2, m).

    Position and orientation of the end-effector in the world frame; the rotation is the first two
    columns of its matrix, which unlike the quaternion has no two names for one orientation and no
    jump. Fingers are the last two of ``joint_positions``. Raises ValueError for other shapes.
    """
    pose = np.asarray(observation.eef_pose, np.float64)
    joints = np.asarray(observation.joint_positions, np.float64)
    if pose.shape != (7,) or joints.ndim != 1 or joints.size < FINGERS:
        raise ValueError(
            f"Proprioception needs an end-effector pose of 7 numbers and at least {FINGERS} joint "
            f"positions, not shapes {pose.shape} and {joints.shape}."
        )
    norm = np.linalg.norm(pose[3:])
    if not norm > 1e-6:
        raise ValueError("The end-effector's quaternion is zero; it is no orientation.")
    x, y, z, w = pose[3:] / norm
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w))
    second = (2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w))
    return np.concatenate([pose[:3], first, second, joints[-FINGERS:]]).astype(np.float32)


def finite_act(policy: "Policy", observation: Observation, instruction: str) -> np.ndarray:
    """(T, D) float32, the answer of ``policy.act``; NaN where that is no action (``is_action``).

    Raises ValueError, besides what ``act`` raises, where numbers of the observation or the
    confidence are not finite: a network makes of NaN an action like any other, at full speed.
    """
    numbers = {
        "the joint state": observation.joint_positions,
        "the end-effector pose": observation.eef_pose,
        "the object state": observation.object_state,
    }
    for name, values in numbers.items():
        if values is not None and not np.all(np.isfinite(values)):
            raise ValueError(f"{name} is not finite ({np.asarray(values).tolist()})")
    actions = policy.act(observation, instruction)
    if not np.isfinite(policy.confidence):
        raise ValueError(f"the policy's confidence is {policy.confidence}, so its answer is none")
    return actions


def is_action(actions) -> bool:
    """Whether an answer (T, D) of a policy can be executed; where it cannot, the arbiter refuses it
    and holds a step: nothing moves, the gripper stays, nothing is learned from it."""
    return bool(np.isfinite(actions).all())


@dataclass
class Batch:
    """B samples as tensors.

    images: camera -> (B, H, W, 3) uint8 RGB. proprio: (B, 11) float32. object_state: (B, S)
    float32 or None. instructions: B strings. actions: (B, T, D) float32 in the action space,
    action_mask: (B, T) bool, valid steps of the chunk; both None where only acting. noise, time:
    (B, S, T, D) and (B, S) float32, the draws that a flow policy scores these actions at, or any
    others under these observations; None for a policy that needs none.
    """

    images: dict[str, "torch.Tensor"]
    proprio: "torch.Tensor"
    object_state: "torch.Tensor | None"
    instructions: list[str]
    actions: "torch.Tensor | None" = None
    action_mask: "torch.Tensor | None" = None
    noise: "torch.Tensor | None" = None
    time: "torch.Tensor | None" = None

    def __len__(self) -> int:
        return len(self.instructions)

    def with_actions(self, actions, action_mask) -> "Batch":
        """The same observations, and draws, with other actions."""
        return replace(self, actions=actions, action_mask=action_mask)


@dataclass
class Scored:
    """A policy's view of the actions of a batch, from one forward pass.

    logps, mask: (B, N) log-probability of each token, and which tokens are valid; of a policy
    without tokens, what stands for it in each number of the chunk, see its family. l1: (B,) mean
    absolute difference of predicted and recorded action, normalised units, no gradient.
    decodable: (B,) bool, False where the prediction is no action (l1 is 0 there).
    """

    logps: "torch.Tensor"
    mask: "torch.Tensor"
    l1: "torch.Tensor"
    decodable: "torch.Tensor"

    def bc_loss(self) -> "torch.Tensor":
        """(B,) as of the policy: mean negative log-likelihood over the valid tokens; 0 where there
        is none."""
        return -self.logps.masked_fill(~self.mask, 0.0).sum(1) / self.mask.sum(1).clamp(min=1)


class Policy(Protocol):
    """What every family offers (design.md section 5).

    family: name in ``FAMILIES``. version: content hash of the checkpoint, "" before it is saved.
    confidence: of the last ``act``, in [0, 1], see the family; NaN before. action_names: names of
    the D dimensions. horizon: T, actions of a chunk in training. executed: the first of them, that
    ``act`` gives. ratio_actions: actions that a log-ratio is of: T where they are summed, 1 where
    it is their mean. token_names: the action dimension of each of the N tokens, or None where a
    token belongs to no single dimension. whole_chunks: a token may stand for any part of a chunk,
    so that no part can be masked: samples that are cut are not imitated (method.md 1.4), and tokens
    may be chosen that are no chunk: NaN. needs_draws: it scores actions at draws of noise and time,
    which a batch has to hold. cameras: name -> (height, width). object_state: S, 0 for none.
    feature_size: W of ``features``. network: the torch module with all weights.
    """

    family: str
    version: str
    confidence: float
    action_names: tuple[str, ...]
    horizon: int
    executed: int
    ratio_actions: int
    token_names: tuple[str, ...] | None
    whole_chunks: bool
    needs_draws: bool
    cameras: dict[str, tuple[int, int]]
    object_state: int
    feature_size: int
    network: "torch.nn.Module"

    def act(self, observation: Observation, instruction: str) -> np.ndarray:
        """(executed, D) float32 in the action space; the same for the same observation. NaN where
        ``whole_chunks`` says."""

    def forward_observation(self, batch: Batch) -> Any:
        """Everything that depends on the observation alone, for ``score``."""

    def features(self, batch: Batch) -> "torch.Tensor":
        """(B, W) what the network makes of the observation, for a critic's heads to read."""

    def score(self, batch: Batch, prefix: Any = None, generate: bool = False) -> Scored:
        """One teacher-forced pass over the batch's actions, on ``prefix`` where it is given.

        generate: l1 is of what ``predict`` generates.
        """

    def log_prob(self, batch: Batch) -> "tuple[torch.Tensor, torch.Tensor]":
        """(B, N) token log-probabilities, (B, N) bool mask. Where there are no tokens, the family
        has ``flow_error`` instead."""

    def predict(
        self, batch: Batch, generate: bool = False, noise: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """(B, T, D) what it would do: most probable tokens, teacher-forced or one after the other.

        NaN where ``whole_chunks`` says. noise: (B, T, D) added to them, in normalised units (1 is
        half an action's range).
        """

    def bc_loss(self, batch: Batch) -> "torch.Tensor":
        """(B,) what cloning makes small: mean negative log-likelihood of the valid tokens.

        Of a policy that is trained by flow matching, the error of its velocity (HABC eq. (1)).
        """

    def response(self, batch: Batch) -> "torch.Tensor":
        """(B, M) what its answer to the observations, and the batch's actions, is made from:
        log-probabilities or velocities. What it sees makes a difference here, if anywhere."""

    def example(self, brightness: int = 127) -> Observation:
        """A made-up observation of the right shapes."""

    def parts(self) -> dict[str, dict]:
        """JSON-able ``config``, ``normalisation`` and ``tokenizer``; enough for ``from_parts``."""

    @classmethod
    def from_parts(cls, config: dict, normalisation: dict, tokenizer: dict) -> "Policy":
        """An untrained policy of these parts."""


def form(policy: Policy) -> str:
    """What a policy sees and does, in words; two of the same can take each other's place."""
    cameras = [f"camera {name} {h} x {w}" for name, (h, w) in sorted(policy.cameras.items())]
    state = [f"an object state of {policy.object_state} numbers"] if policy.object_state else []
    return ", ".join([*cameras, *state, f"actions {' '.join(policy.action_names)}"])
