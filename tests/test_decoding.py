"""Sequences from a step function with a memory, against enumeration of all of them in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnconv.decoding import beam, greedy
from attnconv.errors import UsageError

END, CLASSES, STEPS, BATCH, FEATURES = 0, 3, 4, 3, 5
FIRST = CLASSES
# Of every length with its end, and those that have none.
COUNT = sum(2**length for length in range(STEPS)) + 2**STEPS


def weights(seed: int) -> dict[str, np.ndarray]:
    """Of a recurrent net: what it says depends on all symbols so far, and on their order."""
    rng = np.random.default_rng(seed)
    return {
        "mix": rng.normal(size=(FEATURES, FEATURES)),
        "symbols": 2 * rng.normal(size=(CLASSES + 1, FEATURES)),
        "positions": rng.normal(size=(STEPS, FEATURES)),
        "out": rng.normal(size=(FEATURES, CLASSES)),
        "start": rng.normal(size=(BATCH, FEATURES)),
    }


def recurrent(w):
    def step(cache, symbols, position):
        x = cache["state"] @ w["mix"] + w["symbols"][symbols] + w["positions"][position]
        state = jnp.tanh(x)
        return state @ w["out"], {"state": state, "nothing": None}

    return {"state": w["start"], "nothing": None}, step


@functools.partial(jax.jit, static_argnames=("function", "beams", "length_penalty"))
def search(w, function, **options):
    common = {"batch": BATCH, "steps": STEPS, "first": FIRST, "end": END}
    return function(*recurrent(w), **common, **options)


def enumerated(w, example: int) -> dict[tuple[int, ...], tuple[float, int]]:
    """Every sequence with the sum of its log-probabilities and its length, one by one."""
    found = {}
    for symbols in itertools.product(range(CLASSES), repeat=STEPS):
        state, last, total, written = w["start"][example], FIRST, 0.0, []
        for position, symbol in enumerate(symbols):
            state = np.tanh(state @ w["mix"] + w["symbols"][last] + w["positions"][position])
            scores = state @ w["out"]
            total += scores[symbol] - np.log(np.exp(scores).sum())
            written.append(symbol)
            last = symbol
            if symbol == END:
                break
        filled = (*written, *[-1] * (STEPS - len(written)))
        found[filled] = (total, len(written))
    return found


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_all_beams_it_finds_every_sequence_in_order(seed, penalty):
    w = weights(seed)
    symbols, values = search(w, beam, beams=COUNT, length_penalty=penalty)
    for example in range(BATCH):
        expected = enumerated(w, example)
        assert len(expected) == COUNT
        value = {s: total / length**penalty for s, (total, length) in expected.items()}
        ranked = sorted(value, key=value.get, reverse=True)
        np.testing.assert_array_equal(symbols[example], ranked)
        np.testing.assert_allclose(values[example], [value[s] for s in ranked], rtol=2e-5)


def test_more_beams_than_sequences_leave_the_rest_empty():
    symbols, values = search(weights(2), beam, beams=COUNT + 4)
    assert (symbols[:, COUNT:] == -1).all() and (values[:, COUNT:] == -jnp.inf).all()
    assert (symbols[:, :COUNT, 0] >= 0).all() and jnp.isfinite(values[:, :COUNT]).all()
    np.testing.assert_allclose(jnp.exp(values).sum(axis=1), np.ones(BATCH), rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_few_beams(seed):
    """Each is a different sequence with its own value; the first is never worse than greedy's."""
    w = weights(seed)
    alone = search(w, greedy)
    one, _ = search(w, beam, beams=1)
    np.testing.assert_array_equal(one[:, 0], alone)
    for penalty in (0.0, 1.0):
        symbols, values = search(w, beam, beams=5, length_penalty=penalty)
        assert (values[:, :-1] >= values[:, 1:]).all()
        for example in range(BATCH):
            expected = enumerated(w, example)
            found = [tuple(s.tolist()) for s in np.asarray(symbols[example])]
            assert len(set(found)) == 5
            value = [expected[s][0] / expected[s][1] ** penalty for s in found]
            np.testing.assert_allclose(values[example], value, rtol=2e-5)


def narrow(w, example: int, beams: int, penalty: float) -> list[tuple[int, ...]]:
    """Beam search by hand: of all continuations of what was kept, keep the best."""
    whole = enumerated(w, example)
    total = {}  # of each beginning: the log of the sum over what it may become
    for symbols, (log, _) in whole.items():
        for length in range(1, STEPS + 1):
            total.setdefault(symbols[:length], []).append(log)
    total = {s: np.logaddexp.reduce(logs) for s, logs in total.items()}
    kept = [()]
    for length in range(1, STEPS + 1):
        grown = [s for s in total if len(s) == length and s[:-1] in kept]
        written = {s: sum(symbol != -1 for symbol in s) for s in grown}
        kept = sorted(grown, key=lambda s: -total[s] / written[s] ** penalty)[:beams]
    return kept


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beams", [2, 3])
def test_beams_are_those_of_a_search_by_hand(beams, penalty):
    for seed in range(4):
        w = weights(seed)
        symbols, _ = search(w, beam, beams=beams, length_penalty=penalty)
        by_hand = [narrow(w, example, beams, penalty) for example in range(BATCH)]
        np.testing.assert_array_equal(symbols, by_hand)


def chain(rows):
    """A step function without memory: log-probabilities of the next symbol for each last one."""
    table = jnp.log(jnp.array(rows))
    return lambda cache, symbols, position: (table[symbols], cache)


def test_a_sequence_without_end_has_none():
    step = chain([[1.0, 0.0], [0.1, 0.9], [0.0, 1.0]])
    symbols = greedy((), step, batch=1, steps=3, first=2, end=0)
    assert symbols.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(("function", "options"), [(greedy, {}), (beam, {"beams": 2})])
def test_it_stops_when_all_have_ended(function, options):
    """One example ends with its first symbol, the other with its second."""
    step = chain([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.1, 0.9, 0.0]])
    calls = []

    def counted(cache, symbols, position):
        calls.append(int(position))
        return step((), jnp.where(position == 0, cache, symbols), position)[0], cache

    with jax.disable_jit():
        start = jnp.array([1, 2])
        found = function(start, counted, batch=2, steps=50, first=0, end=0, **options)
    symbols = found[0][:, 0] if function is beam else found
    assert symbols[:, :3].tolist() == [[0, -1, -1], [1, 0, -1]]
    assert (symbols[:, 3:] == -1).all() and calls == [0, 1]


@pytest.mark.parametrize("function", [greedy, beam])
def test_jit_and_vmap_are_the_same(function):
    options = {"beams": 4} if function is beam else {}
    many = [weights(seed) for seed in range(3)]
    alone = [search(w, function, **options) for w in many]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)
    together = jax.jit(jax.vmap(lambda w: search(w, function, **options)))(stacked)
    for i, one in enumerate(alone):
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5)


def test_of_no_examples_there_are_no_sequences():
    step = chain([[0.5, 0.5], [0.5, 0.5]])
    symbols, value = beam((), step, batch=0, steps=3, first=0, end=0, beams=2)
    assert (symbols.shape, value.shape) == ((0, 2, 3), (0, 2))


def test_counts_below_one_are_refused():
    step = chain([[1.0]])
    with pytest.raises(UsageError, match="steps=0: expected a positive number"):
        greedy((), step, batch=1, steps=0, first=0, end=0)
    with pytest.raises(UsageError, match="beams=0: expected a positive number"):
        beam((), step, batch=1, steps=1, first=0, end=0, beams=0)
