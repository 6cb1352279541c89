"""Text as tokens: how it is cut, what stands for rare and unknown words, and their numbers."""

import collections
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.errors import UsageError
from attnconv.spec import PAD, UNKNOWN
from attnconv.tasks.vocabulary import PAIRS, Vocabulary, kind

TEXTS = [
    "The cat's tail, it sat.",
    "the cat sat on walking-sticks",
    "it ran in 1984, running on",
    "Paris and London sat in 2001",
]


def names(vocabulary, tokens):
    """What tokens stand for, by their numbers."""
    of = {index: name for name, index in vocabulary.index.items()} | {UNKNOWN: "?", PAD: "_"}
    return [of[token] for token in tokens]


def test_words_are_cut_at_spaces_and_punctuation():
    pieces = Vocabulary(TEXTS, "words").pieces
    assert pieces("The cat's tail, it sat.") == ["The", "cat's", "tail", ",", "it", "sat", "."]
    assert pieces("  x-ray\tof\n3.5%") == ["x", "-", "ray", "of", "3", ".", "5", "%"]
    assert pieces("l’été n'est-ce") == ["l’été", "n'est", "-", "ce"]
    assert pieces("'quoted' rock'n'roll") == ["'", "quoted", "'", "rock'n'roll"]
    assert pieces(":-) ümlaut_1") == [":", "-", ")", "ümlaut_1"]


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_only_spaces_are_left_out_of_words(text):
    pieces = Vocabulary([], "words").pieces(text)
    assert "".join(pieces) == re.sub(r"\s", "", text)
    assert all(pieces)


def test_words_seen_twice_are_their_own_and_others_are_their_kind():
    vocabulary = Vocabulary(TEXTS, "words")
    counts = collections.Counter(re.findall(r"[A-Za-z']+|\d+|[^\w\s]", " ".join(TEXTS)))
    often = {word for word, n in counts.items() if n >= 2}
    assert often == {",", "it", "sat", "on", "in"}
    # The others are seen once: two of them end in -ing, two are numbers, two punctuation, and more
    # than one is short and in small letters.
    assert set(vocabulary.index) == often | {"<a ing>", "<0>", "<.>", "<a>"}
    assert len(vocabulary) == 2 + 9
    assert names(vocabulary, vocabulary.encode("it sat singing , on 7 ; dog")) == [
        *("it", "sat", "<a ing>", ",", "on", "<0>", "<.>", "<a>")
    ]
    assert names(vocabulary, vocabulary.encode("running in 1984 Paris")) == [
        *("<a ing>", "in", "<0>", "?")
    ]


def test_what_neither_itself_nor_its_kind_was_seen_is_unknown():
    vocabulary = Vocabulary(["a a b"], "words")
    assert vocabulary.index == {"a": 2}  # b is the only one of its kind
    assert vocabulary.encode("a b c a Zebra") == [2, UNKNOWN, UNKNOWN, 2, UNKNOWN]
    assert len(vocabulary) == 3
    assert Vocabulary([], "words").encode("any word") == [UNKNOWN, UNKNOWN]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("walking", "<a ing>"),
        ("WALKING", "<A>"),
        ("Walking", "<Aa ing>"),
        ("NATO", "<A>"),
        ("I", "<A>"),
        ("iPhones", "<a nes>"),
        ("walks", "<a lks>"),
        ("walk", "<a>"),
        ("Walk", "<Aa>"),
        ("cat's", "<a t's>"),
        ("1984", "<0>"),
        ("3.5", "<0>"),
        ("10th", "<0a>"),
        ("B2B", "<0a>"),
        ("...", "<.>"),
        ("", "<.>"),
        ("McDONALD", "<Aa ald>"),
    ],
)
def test_kinds(word, expected):
    assert kind(word) == expected


def test_characters_are_all_their_own():
    vocabulary = Vocabulary(["abba ", "cab"], "characters")
    assert vocabulary.index == {" ": 2, "a": 3, "b": 4, "c": 5}
    assert vocabulary.encode("bad cab") == [4, 3, UNKNOWN, 2, 5, 3, 4]
    # What is seen once is a token too, and no kind stands for a character.
    assert "<a>" not in vocabulary.index and len(vocabulary) == 6


@pytest.mark.parametrize("cut", ["words", "characters"])
def test_numbers_begin_after_padding_and_unknown_and_follow_the_alphabet(cut):
    vocabulary = Vocabulary(TEXTS, cut)
    assert list(vocabulary.index.values()) == list(range(2, len(vocabulary)))
    assert list(vocabulary.index) == sorted(vocabulary.index)
    assert {PAD, UNKNOWN} == {0, 1}
    again = Vocabulary(TEXTS[::-1], cut)
    assert again.index == vocabulary.index
    encoded = [token for text in TEXTS for token in vocabulary.encode(text)]
    assert PAD not in encoded and max(encoded) == len(vocabulary) - 1


@pytest.mark.parametrize("cut", ["words", "characters"])
def test_text_in_pieces_stays_as_it_is(cut):
    pieces = [("New York", "is", "x-ray"), ("New York", "is", "is")]
    vocabulary = Vocabulary(pieces, cut)
    assert vocabulary.pieces(pieces[0]) == pieces[0]
    known = {"New York", "is"} | ({"x-ray"} if cut == "characters" else set())
    assert set(vocabulary.index) == known
    assert names(vocabulary, vocabulary.encode(("is", "New York", "York"))) == [
        "is",
        "New York",
        "?",
    ]
    # The same words whole are other pieces.
    whole = names(vocabulary, vocabulary.encode("is New York"))
    assert "New York" not in whole and len(whole) == (3 if cut == "words" else 11)


def test_byte_pairs():
    pytest.importorskip("tokenizers")
    texts = ["low lower lowest", "newer newest wider", "naïve lowing"] * 3
    vocabulary = Vocabulary(texts, "bpe")
    assert list(vocabulary.index.values()) == list(range(2, len(vocabulary)))
    for text in texts:
        pieces = vocabulary.pieces(text)
        assert UNKNOWN not in vocabulary.encode(text)
        assert len(pieces) < len(text.encode())
        assert "".join(pieces).replace("Ġ", " ").replace("Ã¯", "ï") == text
    # A space belongs to what follows it; words of training are whole, others are pieces of them.
    assert vocabulary.pieces("low lower slow") == ["low", "Ġlower", "Ġ", "s", "low"]
    assert names(vocabulary, vocabulary.encode("lowz lower")) == ["low", "z", "Ġlower"]
    assert UNKNOWN not in vocabulary.encode("qü")  # every byte is a token
    assert Vocabulary(texts, "bpe").index == vocabulary.index
    assert len(vocabulary) <= 2 + PAIRS


def test_byte_pairs_are_no_more_than_asked_for():
    pytest.importorskip("tokenizers")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 7)) for _ in range(6000)]
    vocabulary = Vocabulary([" ".join(words)] * 2, "bpe")
    assert 2000 < len(vocabulary) <= 2 + PAIRS


def test_byte_pairs_need_a_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"^tokens=bpe: expected the library tokenizers; install"):
        Vocabulary(TEXTS, "bpe")
