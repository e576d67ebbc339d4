"""Action chunks as few tokens: FAST (Pertsch et al., arXiv 2501.09747)."""

import json

import numpy as np

FIRST_CHARACTER, CHARACTERS = 0xE000, 6400  # Unicode's private use area: integers, not text


def cosines(steps: int) -> np.ndarray:
    """(T, T) the orthonormal cosine transform (DCT-II): row k is frequency k, over T steps."""
    k, t = np.arange(steps)[:, None], np.arange(steps)[None]
    matrix = np.sqrt(2.0 / steps) * np.cos(np.pi * k * (t + 0.5) / steps)
    matrix[0] /= np.sqrt(2.0)
    return matrix


class FastTokenizer:
    """Chunks of ``horizon`` actions of ``dimensions`` numbers in [-1, 1] as tokens.

    A chunk's cosine transform over time, each dimension by itself, is multiplied by ``scale`` and
    rounded. These integers make a row, low frequencies of all dimensions first, and byte-pair
    encoding makes one token of what often stands together in it. A chunk has 1 to
    horizon * dimensions tokens, and after them ``end``; it comes back within
    sqrt(horizon) / (2 * scale).

    merges: pairs of tokens that become one, the most urgent first. Tokens are numbered: first one
    for every integer that a chunk may hold, from the smallest on, so that there is no chunk without
    tokens; then those that merges make, in their order (one that makes an older token adds none);
    then ``end``. Raises ValueError for merges that such chunks cannot have.

    The original stretches each dimension to the quantiles of the data first. Here [-1, 1] is what
    the robot can do, and it stays: what was executed is not clipped, and an error of an action
    means the same for every policy.
    """

    def __init__(self, horizon: int, dimensions: int, scale: float, merges=()):
        if min(horizon, dimensions) < 1 or not 0 < scale < float("inf"):
            raise ValueError(
                "A tokenizer of chunks needs a horizon and dimensions of at least 1 and a scale "
                f"above 0, not {horizon}, {dimensions} and {scale}."
            )
        self.horizon, self.dimensions, self.scale = horizon, dimensions, float(scale)
        self.merges = [(int(left), int(right)) for left, right in merges]
        self._cosines = cosines(horizon)
        self.largest = round(self.scale * float(np.abs(self._cosines).sum(1).max()))
        if 2 * self.largest + 1 > CHARACTERS:
            raise ValueError(
                f"A scale of {scale:g} makes {2 * self.largest + 1} integers of chunks of "
                f"{horizon} actions, and there is room for {CHARACTERS}. Use a smaller scale."
            )
        self.pieces = self._pieces()
        self.end = len(self.pieces)
        self.longest = horizon * dimensions + 1  # tokens of a chunk at most, its end included
        self._words = [self._word(piece) for piece in self.pieces]
        self._bpe = self._encoder()

    def __len__(self) -> int:
        """Different tokens, the end included."""
        return len(self.pieces) + 1

    @classmethod
    def fit(cls, chunks, scale: float, vocabulary: int) -> "FastTokenizer":
        """The tokenizer of some chunks (M, T, D), the same in whatever order they come.

        vocabulary: different tokens there may be, the end included. ValueError where there is no
        chunk, or no room for the integers.
        """
        from tokenizers import Tokenizer, models, trainers

        if not len(chunks):
            raise ValueError(
                "There is no whole chunk of actions to fit a tokenizer to, so there is no policy. "
                "Record longer episodes, or use a smaller horizon."
            )
        plain = cls(*np.shape(chunks)[1:], scale)
        if len(plain) > vocabulary:
            raise ValueError(
                f"A vocabulary of {vocabulary} has no room for the {len(plain)} tokens that a "
                f"scale of {scale:g} needs before any merge. Use a larger one, or a smaller scale."
            )
        bpe = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - 1,
            min_frequency=2,  # a pair seen once is no habit
            initial_alphabet=plain._words,
            show_progress=False,
        )
        bpe.train_from_iterator(map(plain._word, plain._integers(chunks)), trainer)
        merges = json.loads(bpe.to_str())["model"]["merges"]  # the library shows them there alone
        merges = [[bpe.token_to_id(word) for word in pair] for pair in merges]
        return cls(plain.horizon, plain.dimensions, scale, merges)

    def encode(self, chunks) -> list[list[int]]:
        """(B, T, D) floats -> the tokens of each, ``end`` last; what is beyond [-1, 1] is clipped.

        Raises ValueError where an action is not finite.
        """
        encode = self._bpe.tokenize
        return [
            [*(token.id for token in encode(self._word(row))), self.end]
            for row in self._integers(chunks)
        ]

    def decode(self, tokens: list[int]) -> np.ndarray | None:
        """Tokens up to the first ``end`` -> (T, D) float32 in [-1, 1].

        None where they are no chunk: without an end, or of another number of integers.
        """
        if self.end not in tokens:
            return None
        row = [i for token in tokens[: tokens.index(self.end)] for i in self.pieces[token]]
        if len(row) != self.horizon * self.dimensions:
            return None
        spectrum = np.reshape(row, (self.horizon, self.dimensions)) / self.scale
        return np.clip(self._cosines.T @ spectrum, -1.0, 1.0).astype(np.float32)

    def as_dict(self) -> dict:
        return {
            "kind": "fast",
            "horizon": self.horizon,
            "dimensions": self.dimensions,
            "scale": self.scale,
            "merges": self.merges,
        }

    @classmethod
    def from_dict(cls, data) -> "FastTokenizer":
        """Of ``as_dict``; nothing is fitted. ValueError for another kind or damaged merges."""
        if not isinstance(data, dict) or data.get("kind") != "fast":
            raise ValueError(
                "tokenizer.json holds no tokenizer of action chunks (kind fast): it belongs to "
                "another policy, so this one was not loaded. Copy the whole checkpoint again."
            )
        return cls(data["horizon"], data["dimensions"], data["scale"], data["merges"])

    def _pieces(self) -> list[tuple[int, ...]]:
        """The integers that each token but ``end`` stands for."""
        pieces = [(integer,) for integer in range(-self.largest, self.largest + 1)]
        made = set(pieces)
        for left, right in self.merges:
            known = all(0 <= token < len(pieces) for token in (left, right))
            piece = pieces[left] + pieces[right] if known else ()
            if not 0 < len(piece) <= self.horizon * self.dimensions:
                raise ValueError(
                    f"The tokenizer merges {left} and {right}, which chunks of {self.horizon} x "
                    f"{self.dimensions} at scale {self.scale:g} cannot have: it is damaged. Copy "
                    "the whole checkpoint again."
                )
            if piece not in made:
                made.add(piece)
                pieces.append(piece)
        return pieces

    def _encoder(self):
        from tokenizers.models import BPE

        words = self._words
        vocabulary = {word: number for number, word in enumerate(words)}
        return BPE(vocabulary, [(words[left], words[right]) for left, right in self.merges])

    def _integers(self, chunks) -> list[list[int]]:
        """(B, T, D) -> the row of integers of each."""
        chunks = np.asarray(chunks, np.float64)
        if not np.isfinite(chunks).all():
            raise ValueError("An action to be tokenized is NaN or infinite; it has no token.")
        spectrum = self.scale * (self._cosines @ np.clip(chunks, -1.0, 1.0))
        integers = np.clip(np.rint(spectrum), -self.largest, self.largest).astype(int)
        return integers.reshape(len(chunks), -1).tolist()

    def _word(self, integers) -> str:
        """The integers as characters, as byte-pair encoding has them."""
        first = FIRST_CHARACTER + self.largest
        return "".join(chr(first + integer) for integer in integers)
