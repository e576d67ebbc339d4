"""The torch modules of the small policies: encoders of what is observed, and a transformer."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CLIP = 10.0  # normalised numbers further out carry no more information than "far out"


class Numbers(nn.Module):
    """A vector of normalised numbers as one token, with multi-scale features.

    Each number x enters as x and as sin and cos of 2^k x, so that both its rough size and
    differences of a hundredth of its spread are visible to the first layer.
    """

    def __init__(self, size: int, width: int, scales: int):
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(scales), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(size * (1 + 2 * scales), 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, numbers):
        """(B, S) -> (B, 1, width)."""
        numbers = numbers.clamp(-CLIP, CLIP)
        waves = (numbers[..., None] * self.frequencies).flatten(1)
        return self.layers(torch.cat([numbers, waves.sin(), waves.cos()], 1))[:, None]


class Camera(nn.Module):
    """An image of any size as one token: where its features are, and how strong.

    A few convolutions (stride 8) give maps; each map's spatial soft-arg-max is a point in the image
    (-1 to 1 each way), as in visuomotor policies since Levine et al. 2016. On images of a square
    at random places, held-out error was a ninth of that of 3 x 3 tokens of a deeper convolution,
    which learn single images by heart, and training was faster.
    """

    SIZES = (3, 32, 64, 64)
    POINTS = 64

    def __init__(self, width: int):
        super().__init__()
        shapes = ((8, 4, 2), (3, 2, 1), (3, 1, 1))  # kernel, stride, padding
        pairs = zip(self.SIZES[:-1], self.SIZES[1:], shapes, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, *shape) for a, b, shape in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(8, size) for size in self.SIZES[1:])
        self.maps = nn.Conv2d(self.SIZES[-1], self.POINTS, 1)
        self.out = nn.Linear(3 * self.POINTS, width)

    def forward(self, images):
        """(B, H, W, 3) uint8 -> (B, 1, width)."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x)))
        maps = self.maps(x)
        share = maps.flatten(2).softmax(-1).view_as(maps)
        down = (share.sum(3) * torch.linspace(-1, 1, maps.shape[2], device=x.device)).sum(2)
        across = (share.sum(2) * torch.linspace(-1, 1, maps.shape[3], device=x.device)).sum(2)
        strength = (share * maps).sum((2, 3))
        return self.out(torch.cat([3.0 * across, 3.0 * down, strength], 1))[:, None]


class Block(nn.Module):
    """Pre-norm transformer block; attention sees ``past`` keys and values besides its own."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x, mask, past=None):
        """(B, L, width), mask (L, past + L) bool -> (B, L, width), (keys, values) up to here."""
        qkv = self.attention_in(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x)))), (key, value)


class Blocks(nn.ModuleList):
    """Transformer blocks, one after the other.

    in_step: other processes pass them with this one, and have to as often (``learning.sharding``).
    """

    in_step = False

    def forward(self, x, mask, past=None, recompute: bool = False):
        """As one of them; past, and what is returned beside x, are a list of theirs.

        recompute: keep a block's inputs and outputs alone for the backward pass.
        """
        cache = []
        for i, block in enumerate(self):
            inputs = x, mask, None if past is None else past[i]
            if recompute and torch.is_grad_enabled():
                x, keys_values = checkpoint(
                    block, *inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, keys_values = block(*inputs)
            cache.append(keys_values)
        return x, cache


class Observer(nn.Module):
    """[words, cameras, numbers], and transformer blocks over them and over what a family adds.

    The observation's tokens come first, so their keys and values (the *prefix*) serve any number
    of actions under the same observation.
    """

    def __init__(self, *, words, word_count, cameras, numbers, width, scales):
        """cameras: names. numbers: name -> size. The blocks are added by ``add_blocks``."""
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.word_position = nn.Parameter(0.02 * torch.randn(word_count, width))
        self.cameras = nn.ModuleDict({f"camera_{name}": Camera(width) for name in cameras})
        self.numbers = nn.ModuleDict({k: Numbers(n, width, scales) for k, n in numbers.items()})

    def add_blocks(self, width: int, blocks: int, heads: int) -> None:
        """To be called after a family's own tokens: the order decides what a seed gives."""
        self.blocks = Blocks(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.recompute = False  # see Blocks

    def scale_weights(self, *embeddings: nn.Embedding) -> None:
        """Initial sizes of the words and other embeddings, and of what each block adds."""
        for embedding in (self.words, *embeddings):
            nn.init.normal_(embedding.weight, std=0.02)
        for block in self.blocks:
            for layer in (block.attention_out, block.mlp_out):
                nn.init.normal_(layer.weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)

    def observe(self, words, images, numbers):
        """The tokens of the observation after the last block, (B, tokens, width), and the prefix.

        words: (B, W) int. images: name -> (B, H, W, 3). numbers: name -> (B, S).
        """
        parts = [self.words(words) + self.word_position]
        parts += [
            encode(images[name.removeprefix("camera_")]) for name, encode in self.cameras.items()
        ]
        parts += [encode(numbers[name]) for name, encode in self.numbers.items()]
        return self.attend(torch.cat(parts, 1), None)

    def summary(self, x):
        """(B, width) what the tokens of the observation come to."""
        return self.norm(x).mean(1)

    def attend(self, x, past, causal: bool = True, there=None):
        """All blocks on x (B, L, width), which sees ``past`` (a prefix or None) and itself: only
        what comes before where ``causal``, and nothing where ``there`` (B, L) is False. Returns x
        and the prefix extended by it."""
        length, seen = x.shape[1], 0 if past is None else past[0][0].shape[2]
        mask = torch.ones(length, seen + length, dtype=torch.bool, device=x.device)
        mask = mask.tril(seen) if causal else mask
        if there is not None:
            mask = mask & F.pad(there, (seen, 0), value=True)[:, None, None]
        return self.blocks(x, mask, past, self.recompute)


class ActionTokens(Observer):
    """An observer with one slot an action token, causal throughout."""

    def __init__(self, *, tokens, vocabulary, width, blocks, heads, **observer):
        """tokens: N action tokens a sample, each one of ``vocabulary``."""
        super().__init__(width=width, **observer)
        self.slots = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.action_tokens = nn.Embedding(vocabulary, width)
        self.add_blocks(width, blocks, heads)
        self.head = nn.Linear(width, vocabulary)
        self.scale_weights(self.action_tokens)

    def slot_logits(self, prefix, previous, first: int = 0, places=None):
        """Logits of the action tokens from slot ``first`` on.

        previous: (B, L) the token before each slot; column 0 is ignored where ``first`` is 0.
        places: (B, L) whose slot's embedding each has; by default its own. Returns (B, L,
        vocabulary) and the prefix extended by these slots.
        """
        x = self.action_tokens(previous)
        if first == 0:
            start = self.start.expand(len(x), 1, -1)
            x = torch.cat([start, x[:, 1:]], 1)
        x = x + (self.slots[first : first + x.shape[1]] if places is None else self.slots[places])
        x, prefix = self.attend(x, prefix)
        return _full(self.head(self.norm(x))), prefix


class ActionFlow(Observer):
    """An observer with the velocity of a noisy chunk of actions; one token an action.

    The chunk's tokens see the observation and each other. A token is made of a noisy action and the
    time, as in pi0 (appendix B): a layer of the action, then two of that and of sines of the time.
    start: (T, D) noise that acting begins with, one draw for the policy's life.
    """

    PERIODS = 4e-3, 4.0  # shortest and longest of the time's sines, as in openpi

    def __init__(self, *, actions, size, width, blocks, heads, **observer):
        """actions: T of a chunk, each of ``size`` numbers, D."""
        super().__init__(width=width, **observer)
        self.places = nn.Parameter(0.02 * torch.randn(actions, width))
        self.noisy = nn.Linear(size, width)
        self.timed = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.add_blocks(width, blocks, heads)
        self.head = nn.Linear(width, size)
        self.scale_weights()
        self.register_buffer("start", torch.randn(actions, size))
        shortest, longest = self.PERIODS
        periods = shortest * (longest / shortest) ** torch.linspace(0, 1, width // 2)
        self.register_buffer("frequencies", 2 * torch.pi / periods, persistent=False)

    def velocity(self, prefix, noisy, time, there=None):
        """(B, T, D) velocity of noisy actions (B, T, D) at times (B,), 0 noise to 1 action.

        there: (B, T) bool, actions of the chunk; of the others the velocity means nothing and
        nothing depends on them, as long as they are finite.
        """
        waves = time[:, None] * self.frequencies
        waves = torch.cat([waves.sin(), waves.cos()], 1)[:, None].expand(-1, noisy.shape[1], -1)
        x = self.timed(torch.cat([self.noisy(noisy), waves.to(noisy)], -1)) + self.places
        x, _ = self.attend(x, prefix, causal=False, there=there)
        return _full(self.head(self.norm(x)))


def _full(x):
    """A network's answer, of float32 at least, also where the rest is bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
