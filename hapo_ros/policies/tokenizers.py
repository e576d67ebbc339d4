"""Action tokens and instruction words. numpy; torch tensors are handled where they are passed."""

import re

import numpy as np


class UniformBins:
    """Actions in [-1, 1] as one of ``bins`` tokens a dimension, by OpenVLA's scheme.

    ``bins`` edges from linspace(-1, 1, bins); a token is the number of the last edge at or below
    the value, so that there are ``bins`` tokens and ``bins - 1`` bin centres. The last token stands
    for exactly 1 (or more) and decodes like the one before it. Values outside [-1, 1] are clipped.
    """

    def __init__(self, bins: int = 256):
        if int(bins) != bins or bins < 2:
            raise ValueError(f"bins must be a whole number >= 2, not {bins}")
        self.bins = int(bins)
        self.edges = np.linspace(-1.0, 1.0, self.bins)
        self.centres = (self.edges[:-1] + self.edges[1:]) / 2.0

    def encode(self, actions):
        """(..., D) floats -> (..., D) int64 tokens 0..bins-1; numpy in, numpy out; torch likewise.

        Raises ValueError where an action is not finite.
        """
        if isinstance(actions, np.ndarray):
            self._require_finite(np.isfinite(actions).all())
            return np.digitize(np.clip(actions.astype(np.float64), -1.0, 1.0), self.edges) - 1
        import torch

        self._require_finite(torch.isfinite(actions).all())
        edges = torch.as_tensor(self.edges, device=actions.device)
        return torch.bucketize(actions.double().clamp(-1.0, 1.0), edges, right=True) - 1

    def decode(self, tokens):
        """(..., D) int tokens -> (..., D) float32 bin centres; ``bins - 1`` decodes as bins - 2.

        Raises ValueError for a token outside 0..bins-1.
        """
        if bool(((tokens < 0) | (tokens >= self.bins)).any()):
            raise ValueError(f"An action token lies outside 0..{self.bins - 1}: {tokens}")
        if isinstance(tokens, np.ndarray):
            return self.centres.astype(np.float32)[np.minimum(tokens, self.bins - 2)]
        import torch

        centres = torch.as_tensor(self.centres, dtype=torch.float32, device=tokens.device)
        return centres[tokens.clamp(max=self.bins - 2)]

    @staticmethod
    def _require_finite(finite) -> None:
        if not bool(finite):
            raise ValueError("An action to be tokenized is NaN or infinite; it has no token.")


class Words:
    """Instruction -> word numbers, with the vocabulary of the instructions it was fitted on.

    vocabulary: words in order; number 0 is padding, 1 any unknown word, word i is 2 + i.
    length: numbers an instruction; shorter ones are padded, longer ones cut.
    """

    PAD, UNKNOWN = 0, 1

    def __init__(self, vocabulary, length: int):
        self.vocabulary = tuple(vocabulary)
        self.length = int(length)
        if self.length < 1 or len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("A vocabulary needs distinct words and a length of at least 1.")
        self._number = {word: 2 + i for i, word in enumerate(self.vocabulary)}

    @staticmethod
    def split(instruction: str) -> list[str]:
        return re.findall(r"[a-z0-9]+", instruction.lower())

    @classmethod
    def fit(cls, instructions) -> "Words":
        """Vocabulary of some instructions; independent of their order."""
        split = [cls.split(text) for text in instructions]
        return cls(sorted({w for words in split for w in words}), max([1, *map(len, split)]))

    def __len__(self) -> int:
        return 2 + len(self.vocabulary)

    def encode(self, instruction: str) -> np.ndarray:
        """(length,) int64."""
        numbers = [self._number.get(word, self.UNKNOWN) for word in self.split(instruction)]
        numbers = numbers[: self.length] + [self.PAD] * (self.length - len(numbers))
        return np.array(numbers, np.int64)
