"""A policy on transformers' Llama with random weights: what ``benchmarks/optimizer.py`` trains.

An observation is a sequence of token ids, of which the first may be projected image features, and
an action is one token a dimension from the last 256 of the vocabulary, as in OpenVLA. What stands
in a step is made up; its cost is that of a step of a vision-language-action policy.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from hapo_ros import labels
from hapo_ros.learning.table import StepTable
from hapo_ros.policies.base import PROPRIO_DIM, Batch, Scored
from hapo_ros.policies.tokenizers import UniformBins

ACTIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
BINS = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of the network and of an observation. Tokens of an observation: image_tokens, which are
    features of feature_width projected to the network's width, then text_tokens."""

    layers: int
    width: int
    hidden: int
    heads: int
    vocabulary: int
    text_tokens: int
    image_tokens: int = 0
    feature_width: int = 0

    @property
    def prefix(self) -> int:
        """Tokens of an observation."""
        return self.image_tokens + self.text_tokens


SHAPES = {
    "small": Shape(8, 512, 1376, 8, 2048, text_tokens=96),
    "7b": Shape(32, 4096, 11008, 32, 32064, text_tokens=32, image_tokens=256, feature_width=2176),
}  # 7b: OpenVLA's language model, and the width of its two vision towers' features together


class SeenTokens(nn.Module):
    """Embeddings of token ids; ids beyond the vocabulary are image features, projected."""

    def __init__(self, words: nn.Embedding, features: torch.Tensor):
        """features: (n, feature_width), of the ids from the vocabulary's size on."""
        super().__init__()
        self.words = words
        self.register_buffer("features", features, persistent=False)
        self.projector = nn.Linear(features.shape[1], words.embedding_dim, dtype=features.dtype)

    def forward(self, ids):
        first = self.words.num_embeddings
        images = self.projector(self.features[(ids - first).clamp(min=0)])
        return torch.where((ids >= first)[..., None], images, self.words(ids.clamp(max=first - 1)))


def language_model(shape: Shape, samples: int, seed: int, device: str, dtype) -> LlamaForCausalLM:
    """The network with random weights; the same seed gives the same. samples: observations whose
    image features there are."""
    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.prefix + len(ACTIONS),
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
        if shape.image_tokens:
            features = torch.randn(samples * shape.image_tokens, shape.feature_width, dtype=dtype)
            model.set_input_embeddings(SeenTokens(model.get_input_embeddings(), features))
    return model


class _Kept(DynamicCache):
    """Keys and values of a prefix that any number of continuations see, and that none extends."""

    def update(self, key_states, value_states, layer_idx, *_, **__):
        kept = self.layers[layer_idx]
        return torch.cat([kept.keys, key_states], 2), torch.cat([kept.values, value_states], 2)


@dataclass
class _Seen:
    """Observations, and from the first scoring on what the network made of them.

    ids: (B, P). cache: keys and values of their tokens. last: (B, 1, width), after the last token.
    """

    ids: torch.Tensor
    cache: _Kept | None = None
    last: torch.Tensor | None = None


class _Network(nn.Module):
    """The model's weights. The head is a parameter and no linear layer, so that it gets no adapter:
    TRL's trainer refuses one there."""

    def __init__(self, model: LlamaForCausalLM):
        super().__init__()
        self.backbone = model.model
        self.head = model.lm_head.weight


class LlamaPolicy:
    """What a training step asks of :class:`hapo_ros.policies.base.Policy`.

    The first actions that are scored under an observation go through the network together with it,
    in one pass as long as both; those after them see its keys and values.
    """

    family, version = "llama", ""
    horizon = executed = ratio_actions = 1
    needs_draws = False
    action_names = token_names = ACTIONS

    def __init__(self, model: LlamaForCausalLM, autocast: bool = False):
        """autocast: compute in bfloat16 whatever the weights are."""
        self.network = _Network(model)
        self.bins = UniformBins(BINS)
        self.vocabulary = model.config.vocab_size
        self.autocast = autocast

    @property
    def device(self) -> torch.device:
        return self.network.head.device

    def forward_observation(self, batch: Batch) -> _Seen:
        return _Seen(batch.object_state.to(self.device).long())

    def score(self, batch: Batch, prefix: _Seen | None = None, generate: bool = False) -> Scored:
        """One teacher-forced pass. ValueError where another prediction is asked for."""
        if generate:
            raise ValueError("This policy predicts by teacher forcing alone.")
        actions = batch.actions.to(self.device).flatten(1)
        tokens = self.bins.encode(actions)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = self._hidden(prefix or self.forward_observation(batch), self.ids(tokens))
            logits = F.linear(hidden, self.network.head)
        logits = logits.float()
        logps = logits.log_softmax(-1).gather(-1, self.ids(tokens)[..., None])[..., 0]
        mask = batch.action_mask.to(self.device).expand(logps.shape)
        with torch.no_grad():
            best = logits[..., self.vocabulary - BINS :].argmax(-1)
            l1 = ((self.bins.decode(best) - actions).abs() * mask).mean(1)
        return Scored(logps, mask, l1, torch.ones(len(batch), dtype=torch.bool, device=self.device))

    def ids(self, tokens):
        """Ids in the vocabulary of action tokens."""
        return tokens + self.vocabulary - BINS

    def _hidden(self, seen: _Seen, ids):
        """(B, N, width) what each of the action tokens ids (B, N) is predicted from."""
        if seen.cache is not None:
            later = self.network.backbone(ids[:, :-1], past_key_values=seen.cache)
            return torch.cat([seen.last, later.last_hidden_state], 1)
        cache, before = DynamicCache(), seen.ids.shape[1] - 1
        whole = torch.cat([seen.ids, ids[:, :-1]], 1)
        hidden = self.network.backbone(whole, past_key_values=cache).last_hidden_state
        cache.crop(1 - ids.shape[1])  # views: the tensors are those that the gradient needs anyway
        seen.cache, seen.last = _Kept(), hidden[:, before : before + 1]
        seen.cache.layers = cache.layers
        return hidden[:, before:]


def made_up_steps(shape: Shape, samples: int, seed: int) -> StepTable:
    """Random steps in the composition that ``hapo`` draws: a demonstration's, and as many of a
    deployment, half of them undesirable and half corrections. The ids of an observation stand in
    the place of the object state; they are whole numbers, and small enough for float32."""
    if samples % 4:
        raise SystemExit(f"A batch of {samples} has no exact quarters. Use a multiple of 4.")
    rng = np.random.default_rng(seed)
    half, quarter = samples // 2, samples // 4
    live = [
        np.full(half, labels.POLICY),
        np.repeat([labels.UNDESIRABLE, labels.HUMAN], quarter),
    ]
    images = shape.vocabulary + np.arange(samples * shape.image_tokens).reshape(samples, -1)
    words = rng.integers(0, shape.vocabulary - BINS, (samples, shape.text_tokens))
    actions = rng.uniform(-1, 1, (samples, 1, len(ACTIONS)))
    episodes = [
        {"episode_id": source, "bag_hash": source, "source": source, "policy_version": "",
         "outcome": "success", "instruction": "do it"}
        for source in ("demonstration", "deployment")
    ]  # fmt: skip
    return StepTable(
        images={},
        proprio=np.zeros((samples, PROPRIO_DIM), np.float32),
        object_state=np.concatenate([images, words], 1).astype(np.float32),
        actions=actions.astype(np.float32),
        action_mask=np.ones((samples, 1), bool),
        labels=np.concatenate(live),
        sequence=np.tile(np.arange(half), 2),
        takeover=np.repeat([-1, 0], half),
        episode=np.repeat([0, 1], half),
        place=np.tile(np.arange(half), 2),
        episodes=episodes,
        recorded=live,
        action_names=ACTIONS,
        k=quarter,
        counts={},
    )
