"""Text as tokens: how it is cut, and which token each piece is."""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from attnconv.errors import UsageError
from attnconv.spec import PAD, UNKNOWN

Cut = Literal["words", "characters", "bpe"]

RARE = 2  # a word that is seen less often in training stands for all words of its kind
PAIRS = 4096  # tokens of a byte-pair vocabulary
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_ENDING = 3  # letters


class Vocabulary:
    """The tokens of a training split, and the index of every piece of any text.

    Words that training saw once are exchanged for their kind, the shape and the last letters, so
    that what is learned of them serves the words that it never saw (the signatures of unknown
    words of Klein and Manning 2003, Accurate Unlexicalized Parsing). Byte pairs are those of
    Sennrich, Haddow and Birch 2016, by the library tokenizers.

    Args:
      texts: of the training split, whole or in pieces.
      cut: how text is cut where it is whole; text in pieces stays as it is.

    >>> words = Vocabulary(["the cat sat", "the cat ran", "a dog ran"], "words")
    >>> words.encode("the cow sat"), len(words)
    ([5, 2, 2], 6)
    """

    def __init__(self, texts: Sequence[str | tuple[str, ...]], cut: Cut):
        self.cut = cut
        self.pairs = _byte_pairs(texts) if cut == "bpe" else None
        if self.pairs is not None:
            self.index = _numbered(self.pairs.get_vocab())
            return
        counts = collections.Counter(piece for text in texts for piece in self.pieces(text))
        if cut != "words":
            self.index = _numbered(counts)
            return
        kinds = collections.Counter(kind(w) for w, n in counts.items() if n < RARE)
        often = [word for word, n in counts.items() if n >= RARE]
        self.index = _numbered([*often, *(k for k, n in kinds.items() if n >= RARE)])

    def __len__(self) -> int:
        return 2 + len(self.index)

    def pieces(self, text: str | tuple[str, ...]) -> Sequence[str]:
        if isinstance(text, tuple):
            return text
        if self.pairs is not None:
            return self.pairs.encode(text).tokens
        return _WORD.findall(text) if self.cut == "words" else text

    def encode(self, text: str | tuple[str, ...]) -> list[int]:
        """The index of each piece, `UNKNOWN` where neither it nor its kind was seen."""
        other = kind if self.cut == "words" else lambda piece: piece
        return [
            self.index.get(piece) or self.index.get(other(piece), UNKNOWN)
            for piece in self.pieces(text)
        ]


def kind(word: str) -> str:
    """What a word looks like: capitals, digits, and how it ends.

    >>> kind("walking"), kind("Paris"), kind("NATO"), kind("1984"), kind("x-ray")
    ('<a ing>', '<Aa ris>', '<A>', '<0>', '<a ray>')
    """
    if any(c.isdigit() for c in word):
        return "<0>" if not any(c.isalpha() for c in word) else "<0a>"
    if not any(c.isalpha() for c in word):
        return "<.>"
    if word.isupper():
        return "<A>"
    shape = "Aa" if word[0].isupper() else "a"
    ending = word[-_ENDING:].lower() if len(word) > _ENDING + 1 else ""
    return f"<{shape} {ending}>" if ending else f"<{shape}>"


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    first = 1 + max(PAD, UNKNOWN)
    return {token: i for i, token in enumerate(sorted(set(tokens)), first)}


def _byte_pairs(texts: Sequence[str | tuple[str, ...]]):  # type: ignore[no-untyped-def]
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise UsageError(
            "tokens=bpe: expected the library tokenizers; install it with attnconv's extra text"
        ) from None
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=PAIRS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator((t for t in texts if isinstance(t, str)), trainer)
    return pairs
