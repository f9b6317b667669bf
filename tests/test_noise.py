"""The noise tools: matrices, exact and independent draws, noisy datasets."""

import hashlib
import math
import pickle
from collections import namedtuple
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from noisyloss import noise
from noisyloss.noise import (
    CIFAR10_MAPPING,
    MNIST_MAPPING,
    NoisyLabels,
    asymmetric_matrix,
    cifar100_mapping,
    corrupt,
    pairflip_matrix,
    symmetric_matrix,
)

RATES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1 - 0.9, 1.0]
CIFAR10 = np.arange(50_000) % 10  # 5000 labels of each class


def counts(clean, noisy, num_classes=10):
    """Return the matrix of counts: how many labels of class i have become j."""
    pairs = np.asarray(clean).ravel() * num_classes + np.asarray(noisy).ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


# Matrices -------------------------------------------------------------------------------------------------------------


def test_public_names():
    assert noise.__all__ == sorted(noise.__all__)
    assert set(noise.__all__) == {
        "CIFAR10_MAPPING", "MNIST_MAPPING", "NoisyLabels", "asymmetric_matrix", "cifar100_mapping", "corrupt",
        "corrupt_by_instance", "estimate_noise_rate", "estimate_transition", "load_cifar10n", "pairflip_matrix",
        "symmetric_matrix",
    }  # fmt: skip
    assert all(hasattr(noise, name) for name in noise.__all__)


def test_symmetric_matrix_by_hand():
    T = symmetric_matrix(4, 0.3)
    assert T.dtype == np.float64
    np.testing.assert_allclose(
        T, [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]]
    )


def test_asymmetric_matrix_by_hand():
    T = asymmetric_matrix(4, 0.3, {0: 2, 2: 1})
    assert T.dtype == np.float64
    np.testing.assert_allclose(T, [[0.7, 0, 0.3, 0], [0, 1, 0, 0], [0, 0.3, 0.7, 0], [0, 0, 0, 1]])


def test_pairflip_matrix_by_hand():
    np.testing.assert_allclose(pairflip_matrix(3, 0.45), [[0.55, 0.45, 0], [0, 0.55, 0.45], [0.45, 0, 0.55]])


def test_published_mappings():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert [(names[i], names[j]) for i, j in CIFAR10_MAPPING.items()] == [
        ("truck", "automobile"), ("bird", "airplane"), ("cat", "dog"), ("dog", "cat"), ("deer", "horse"),
    ]  # fmt: skip
    assert dict(MNIST_MAPPING) == {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}


def test_cifar100_mapping_is_one_cycle_in_each_group_of_five():
    mapping = cifar100_mapping()
    assert sorted(mapping) == sorted(mapping.values()) == list(range(100))
    for group in range(0, 100, 5):
        assert [mapping[i] for i in range(group, group + 5)] == [group + 1, group + 2, group + 3, group + 4, group]
    mapping[0] = 50
    assert cifar100_mapping()[0] == 1  # a new dict each time


@st.composite
def matrices(draw):
    C = draw(st.integers(2, 12))
    rate = draw(st.floats(0, 1))
    others = st.integers(1, C - 1)
    mapping = draw(st.dictionaries(st.integers(0, C - 1), others).map(lambda d: {i: (i + k) % C for i, k in d.items()}))
    return draw(
        st.sampled_from(
            [
                symmetric_matrix(C, rate),
                pairflip_matrix(C, rate),
                asymmetric_matrix(C, rate, mapping),
                asymmetric_matrix(C, rate, mapping, sequential=True),
            ]
        )
    )


@given(matrices())
def test_matrices_are_row_stochastic(T):
    assert (T >= 0).all()
    np.testing.assert_allclose(T.sum(axis=1), 1, rtol=0, atol=1e-15 * len(T))


@given(C=st.integers(2, 200), rate=st.floats(0, 1))
def test_noise_rate_is_the_probability_of_a_change(C, rate):
    for T in (symmetric_matrix(C, rate), pairflip_matrix(C, rate)):
        assert (np.diag(T) == 1 - rate).all()


def test_number_types_of_the_arguments():
    expected = symmetric_matrix(5, 0.25)
    for C, rate in [(np.int64(5), np.float32(0.25)), (np.uint8(5), Fraction(1, 4))]:
        assert (symmetric_matrix(C, rate) == expected).all()
    assert (symmetric_matrix(5, 1) == (1 - np.eye(5)) / 4).all()
    assert (asymmetric_matrix(5, 0.25, {np.int64(1): np.int64(2)}) == asymmetric_matrix(5, 0.25, {1: 2})).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: symmetric_matrix(1, 0.1), ValueError, r"num_classes must be at least 2, but got 1"),
        (lambda: symmetric_matrix(10.0, 0.1), TypeError, r"num_classes must be an integer, but got 10\.0"),
        (lambda: symmetric_matrix(True, 0.1), TypeError, r"num_classes must be an integer, but got True"),
        (lambda: pairflip_matrix(1, 0.1), ValueError, r"num_classes must be at least 2, but got 1"),
        (lambda: pairflip_matrix("3", 0.1), TypeError, r"num_classes must be an integer, but got '3'"),
        (lambda: asymmetric_matrix(0, 0.1, {}), ValueError, r"num_classes must be at least 2, but got 0"),
        (lambda: symmetric_matrix(10, -0.1), ValueError, r"noise_rate must be in \[0, 1\], but got -0\.1"),
        (lambda: symmetric_matrix(10, 1.01), ValueError, r"noise_rate must be in \[0, 1\], but got 1\.01"),
        (lambda: symmetric_matrix(10, math.nan), ValueError, r"noise_rate must be in \[0, 1\], but got nan"),
        (lambda: symmetric_matrix(10, "0.4"), TypeError, r"noise_rate must be a real number, but got '0\.4'"),
        (lambda: symmetric_matrix(10, True), TypeError, r"noise_rate must be a real number, but got True"),
        (lambda: pairflip_matrix(10, 40), ValueError, r"noise_rate must be in \[0, 1\], but got 40"),
        (lambda: asymmetric_matrix(10, 2, {0: 1}), ValueError, r"noise_rate must be in \[0, 1\], but got 2"),
        (lambda: asymmetric_matrix(10, 0.1, [(0, 1)]), TypeError, r"mapping must be a dict {from: to}.*\[\(0, 1\)\]"),
        (lambda: asymmetric_matrix(10, 0.1, {"0": 1}), TypeError, r"mapping must hold integer classes, but got '0': 1"),
        (
            lambda: asymmetric_matrix(10, 0.1, {0: 1.0}),
            TypeError,
            r"mapping must hold integer classes, but got 0: 1\.0",
        ),
        (lambda: asymmetric_matrix(10, 0.1, {0: True}), TypeError, r"mapping must hold integer classes.*0: True"),
        (lambda: asymmetric_matrix(10, 0.1, {10: 1}), ValueError, r"mapping must hold classes in \[0, 9\].*10: 1"),
        (lambda: asymmetric_matrix(10, 0.1, {1: -1}), ValueError, r"mapping must hold classes in \[0, 9\].*1: -1"),
        (lambda: asymmetric_matrix(10, 0.1, {0: 1, 3: 3}), ValueError, r"mapping must send a class to another.*3: 3"),
    ],
)
def test_errors_of_the_matrices(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The exact draw -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_symmetric_counts_are_exact_and_even(rate):
    got = counts(CIFAR10, corrupt(CIFAR10, symmetric_matrix(10, rate), generator=0))
    flips = round(rate * 5000)  # a whole number for each of the rates
    assert (np.diag(got) == 5000 - flips).all()
    off = got[~np.eye(10, dtype=bool)]
    assert off.min() >= flips // 9
    assert off.max() <= -(-flips // 9)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("mapping", [CIFAR10_MAPPING, MNIST_MAPPING, {i: (i + 1) % 10 for i in range(10)}])
def test_asymmetric_counts_are_exact(rate, mapping):
    expected = 5000 * np.eye(10, dtype=int)
    for source, to in mapping.items():
        expected[source, to] = round(rate * 5000)
        expected[source, source] -= round(rate * 5000)
    assert (counts(CIFAR10, corrupt(CIFAR10, asymmetric_matrix(10, rate, mapping), generator=0)) == expected).all()


@given(percent=st.integers(0, 1000), n=st.integers(0, 3000), minus=st.booleans(), dtype=st.sampled_from(["d", "f"]))
def test_flips_are_the_floor_of_the_decimal_rate_times_n(percent, n, minus, dtype):
    """Rounding errors of 1 - 0.9, of the matrix and of float32 cost no flip."""
    rate = 1 - (1000 - percent) / 1000 if minus else percent / 1000
    noisy = corrupt([1] * n, symmetric_matrix(3, rate).astype(dtype), generator=percent)
    assert noisy.count(1) == n - math.floor(Fraction(percent, 1000) * n)


def test_rate_rounded_down_not_to_the_nearest():
    assert corrupt([0] * 9, symmetric_matrix(2, 0.21), generator=0).count(1) == 1  # 1.89
    assert corrupt([0] * 9999, symmetric_matrix(2, 0.9999), generator=0).count(1) == 9998  # 9998.0001
    assert corrupt([0] * 9999, symmetric_matrix(2, 0.99999), generator=0).count(1) == 9998  # 9998.90001


@given(
    weights=st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(lambda w: sum(w) > w[0]),
    n=st.integers(0, 500),
    seed=st.integers(0, 99),
)
def test_flips_are_shared_by_largest_remainder(weights, n, seed):
    total = sum(weights)
    T = np.eye(len(weights))
    T[0] = np.array(weights) / total
    flips = math.floor((1 - Fraction(weights[0], total)) * n)
    got = np.bincount(corrupt([0] * n, T, generator=seed), minlength=len(weights))
    assert got.sum() == n
    assert got[0] == n - flips
    quota = [Fraction(flips * w, total - weights[0]) for w in weights[1:]]
    extra = [c - math.floor(q) for c, q in zip(got[1:].tolist(), quota, strict=True)]
    assert set(extra) <= {0, 1}
    rest = [q - math.floor(q) for q in quota]
    rounded_up = [r for r, e in zip(rest, extra, strict=True) if e]
    rounded_down = [r for r, e in zip(rest, extra, strict=True) if not e]
    assert min(rounded_up, default=1) >= max(rounded_down, default=0)


def test_what_is_left_over_favours_no_class():
    """One flip and nine equal classes to go to: over 900 seeds each gets its 100, within 5 standard deviations."""
    T = symmetric_matrix(10, 0.5)
    got = np.bincount([corrupt([0, 0], T, generator=seed)[0] for seed in range(900)], minlength=10)
    got += np.bincount([corrupt([0, 0], T, generator=seed)[1] for seed in range(900)], minlength=10)
    assert got[0] == 900
    assert abs(got[1:] - 100).max() < 5 * math.sqrt(900 / 9 * 8 / 9)


def test_rounding_errors_do_not_break_ties():
    """0.3 - 0.2 is not 0.1, but as good a claim to the one flip that is left over."""
    T = [[0.8, 0.1, 0.3 - 0.2], [0, 1, 0], [0, 0, 1]]
    winners = {max(corrupt([0] * 5, T, generator=seed)) for seed in range(30)}
    assert winners == {1, 2}


def test_every_sample_is_as_likely_to_be_flipped():
    hits = sum(
        (corrupt(np.zeros(20, int), symmetric_matrix(4, 0.3), generator=s) != 0).astype(int) for s in range(1000)
    )
    assert hits.sum() == 6 * 1000
    assert abs(hits - 300).max() < 5 * math.sqrt(1000 * 0.3 * 0.7)


def test_every_flipped_sample_is_as_likely_to_get_each_class():
    """The third sample is flipped in half the draws, to either class alike: position must not decide."""
    got = np.bincount([corrupt([0] * 8, symmetric_matrix(3, 0.5), generator=s)[2] for s in range(1000)], minlength=3)
    assert (abs(got - [500, 250, 250]) < 5 * np.sqrt([250, 187.5, 187.5])).all()


def test_flips_are_drawn_from_the_clean_labels():
    """Cats become dogs and dogs cats: none goes there and back."""
    noisy = corrupt(CIFAR10, asymmetric_matrix(10, 1.0, CIFAR10_MAPPING), generator=0)
    assert (noisy[CIFAR10 == 3] == 5).all()
    assert (noisy[CIFAR10 == 5] == 3).all()


@given(matrix=matrices(), data=st.data(), seed=st.integers(0, 2**64 - 1))
def test_realised_counts_follow_any_matrix(matrix, data, seed):
    C = len(matrix)
    clean = np.array(data.draw(st.lists(st.integers(0, C - 1), max_size=200)), dtype=np.int64)
    got = counts(clean, corrupt(clean, matrix, generator=seed), C)
    n = np.bincount(clean, minlength=C)
    assert (got.sum(axis=1) == n).all()
    # One flip less where rate * n is rounded down, and one label more or less where the flips are shared out.
    assert (abs(got - matrix * n[:, None]) < 2).all()
    assert (got[matrix == 0] == 0).all()


# Sequential noise: the published code's order effect ---------------------------------------------


def published_sequential(clean, rate, seed):
    """Flip, class by class, that share of the labels which *now* carry the class: what the published code does."""
    rng = np.random.default_rng(seed)
    labels = clean.copy()
    for source, to in [(9, 1), (2, 0), (3, 5), (5, 3), (4, 7)]:
        carriers = np.flatnonzero(labels == source)
        labels[rng.choice(carriers, int(rate * len(carriers)), replace=False)] = to
    return labels


@pytest.mark.parametrize(("rate", "overall"), [(0.1, 0.049), (0.2, 0.096), (0.3, 0.141), (0.4, 0.184)])
def test_sequential_noise_has_exactly_the_effective_rates(rate, overall):
    T = asymmetric_matrix(10, rate, CIFAR10_MAPPING, sequential=True)
    got = counts(CIFAR10, corrupt(CIFAR10, T, generator=0))
    assert 50_000 - np.trace(got) == round(overall * 50_000)
    assert overall == pytest.approx((5 * rate - rate**2) / 10)
    assert got[3, 5] == round(rate * (1 - rate) * 5000)
    assert got[5, 3] == round(rate * 5000)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.4])
def test_sequential_noise_equals_the_published_code(rate):
    """The same number of noisy labels per class in every draw, the same counts of pairs on average."""
    T = asymmetric_matrix(10, rate, CIFAR10_MAPPING, sequential=True)
    ours = counts(CIFAR10, corrupt(CIFAR10, T, generator=0))
    theirs = [counts(CIFAR10, published_sequential(CIFAR10, rate, seed)) for seed in range(30)]
    assert all((t.sum(axis=0) == ours.sum(axis=0)).all() for t in theirs)
    # Of the dog labels that turn to cat, how many were cats is hypergeometric; the rest of the counts follow from it.
    good, dogs = 5000 * rate, 5000 * (1 + rate)
    variance = rate * dogs * (good / dogs) * (1 - good / dogs) * (dogs - rate * dogs) / (dogs - 1)
    assert abs(np.mean(theirs, axis=0) - ours).max() < 4 * math.sqrt(variance / len(theirs))


def test_sequential_noise_is_the_product_of_its_steps():
    expected = np.eye(10)
    for source, to in CIFAR10_MAPPING.items():
        expected = expected @ asymmetric_matrix(10, 0.4, {source: to})
    np.testing.assert_allclose(asymmetric_matrix(10, 0.4, CIFAR10_MAPPING, sequential=True), expected, atol=1e-15)


def test_sequential_noise_depends_on_the_order_of_the_mapping():
    forth = asymmetric_matrix(3, 0.4, {0: 1, 1: 2}, sequential=True)
    back = asymmetric_matrix(3, 0.4, {1: 2, 0: 1}, sequential=True)
    np.testing.assert_allclose(forth[0], [0.6, 0.24, 0.16])
    np.testing.assert_allclose(back[0], [0.6, 0.4, 0])


# The independent draw -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "T",
    [
        symmetric_matrix(10, 0.4),
        asymmetric_matrix(10, 0.3, CIFAR10_MAPPING, sequential=True),
        pairflip_matrix(10, 0.45),
    ],
    ids=["symmetric", "sequential", "pairflip"],
)
def test_independent_frequencies(T, seed):
    """Every count within 5 standard deviations of its binomial, and impossible flips never."""
    got = counts(CIFAR10, corrupt(CIFAR10, T, generator=seed, exact=False))
    assert (abs(got - 5000 * T) <= 5 * np.sqrt(5000 * T * (1 - T))).all()


def test_independent_counts_vary():
    totals = {
        int((corrupt(CIFAR10, symmetric_matrix(10, 0.4), generator=s, exact=False) != CIFAR10).sum()) for s in range(5)
    }
    assert len(totals) > 1


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_independent_draw_of_the_extreme_random_numbers(monkeypatch, u):
    """No label beyond the classes where a row sums to a little less than 1, and none of probability 0."""
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), u, dtype=torch.float64))
    for C in range(2, 60):
        T = np.pad(symmetric_matrix(C, 0.4), 1)  # nothing turns into the classes 0 and C + 1
        T[0, 0] = T[-1, -1] = 1
        noisy = corrupt(np.arange(1, C + 1), T, generator=0, exact=False)
        assert (noisy == (1 if u == 0 else C)).all()


def test_independent_draw_at_rates_0_and_1():
    assert (corrupt(CIFAR10, symmetric_matrix(10, 0), generator=0, exact=False) == CIFAR10).all()
    assert (corrupt(CIFAR10, symmetric_matrix(10, 1), generator=0, exact=False) != CIFAR10).all()


# Seeds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "exact", "expected"),
    [
        (symmetric_matrix(4, 0.5), True, [0, 1, 1, 3, 3, 0, 2, 2, 0, 1, 3, 3, 2, 3, 2, 1, 0, 1, 2, 3]),
        (symmetric_matrix(4, 0.5), False, [0, 2, 2, 3, 3, 1, 2, 2, 0, 0, 0, 1, 2, 2, 2, 2, 3, 1, 2, 3]),
        (
            asymmetric_matrix(4, 0.4, {0: 1, 1: 0}, sequential=True),
            True,
            [0, 1, 2, 3, 0, 0, 2, 3, 0, 1, 2, 3, 1, 0, 2, 3, 0, 1, 2, 3],
        ),
    ],
)
def test_pinned_labels(T, exact, expected):
    """The same on every platform and version: a change here changes everybody's experiments."""
    assert corrupt([0, 1, 2, 3] * 5, T, generator=2024, exact=exact) == expected


@pytest.mark.parametrize(("exact", "digest"), [(True, "c1e12dba45b4b0fe"), (False, "bc6dbce7c50a0944")])
def test_pinned_cifar10_labels(exact, digest):
    noisy = corrupt(CIFAR10, symmetric_matrix(10, 0.4), generator=0, exact=exact)
    assert hashlib.sha256(noisy.astype(np.uint8).tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("exact", [True, False])
def test_int_seed_is_a_new_generator_with_that_seed(exact):
    T = symmetric_matrix(10, 0.4)
    by_seed = corrupt(CIFAR10, T, generator=7, exact=exact)
    generator = torch.Generator().manual_seed(7)
    assert (corrupt(CIFAR10, T, generator=generator, exact=exact) == by_seed).all()
    assert (corrupt(CIFAR10, T, generator=generator, exact=exact) != by_seed).any()  # the generator has advanced
    assert (corrupt(CIFAR10, T, generator=np.int64(7), exact=exact) == by_seed).all()
    assert (corrupt(CIFAR10, T, generator=8, exact=exact) != by_seed).any()


@pytest.mark.parametrize("exact", [True, False])
def test_global_random_state_is_neither_read_nor_changed(exact):
    T = symmetric_matrix(10, 0.4)
    data = TensorDataset(torch.zeros(100, 1), torch.arange(100) % 10)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the legacy state is what must stay)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = corrupt(CIFAR10, T, generator=0, exact=exact), NoisyLabels(data, T, generator=0, exact=exact).targets
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert (corrupt(CIFAR10, T, generator=0, exact=exact) == first[0]).all()
    assert torch.equal(NoisyLabels(data, T, generator=0, exact=exact).targets, first[1])


# Types of the labels and of the matrix --------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_same_type_back(exact):
    T = symmetric_matrix(3, 0.5)
    expected = corrupt([0, 1, 2] * 4, T, generator=0, exact=exact)
    assert expected != [0, 1, 2] * 4
    assert type(expected) is list
    assert {type(label) for label in expected} == {int}
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64):
        array = corrupt(np.array([0, 1, 2] * 4, dtype), T, generator=0, exact=exact)
        assert type(array) is np.ndarray
        assert array.dtype == dtype
        assert array.tolist() == expected
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64):
        tensor = corrupt(torch.tensor([0, 1, 2] * 4, dtype=dtype), T, generator=0, exact=exact)
        assert tensor.dtype == dtype
        assert tensor.tolist() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_labels():
    T = symmetric_matrix(10, 0.4)
    clean = torch.tensor(CIFAR10)
    noisy = corrupt(clean.cuda(), torch.tensor(T).cuda(), generator=0)
    assert noisy.is_cuda
    assert torch.equal(noisy.cpu(), corrupt(clean, T, generator=0))
    with pytest.raises(ValueError, match="generator must be on the CPU, but got one on cuda"):
        corrupt(clean, T, generator=torch.Generator("cuda"))
    data = NoisyLabels(TensorDataset(torch.zeros(50_000, 1), clean.cuda()), T, generator=0, targets=clean.cuda())
    assert torch.equal(data.targets, noisy.cpu())
    assert data[0][1].is_cuda


def test_generator_must_be_on_the_cpu():
    class OnAccelerator(torch.Generator):
        device = torch.device("cuda", 0)

    with pytest.raises(ValueError, match="generator must be on the CPU, but got one on cuda:0"):
        corrupt([0, 1], np.eye(2), generator=OnAccelerator())


@pytest.mark.parametrize("shape", [(), (0,), (6, 1), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("exact", [True, False])
def test_labels_of_any_shape(shape, exact):
    clean = np.arange(math.prod(shape)).reshape(shape) % 2
    T = pairflip_matrix(2, 1.0)
    for order in "CF":
        assert (corrupt(np.asarray(clean, order=order), T, generator=0, exact=exact) == 1 - clean).all()
    noisy = corrupt(torch.tensor(clean), T, generator=0, exact=exact)
    assert noisy.shape == shape
    assert torch.equal(noisy, torch.tensor(1 - clean))
    if shape:
        assert corrupt(clean.tolist(), T, generator=0, exact=exact) == (1 - clean).tolist()


def test_memory_layout_does_not_matter():
    T = symmetric_matrix(10, 0.4)
    clean = CIFAR10[:600].reshape(20, 30)
    expected = corrupt(clean, T, generator=0)
    assert (corrupt(np.asfortranarray(clean), T, generator=0) == expected).all()
    assert (corrupt(torch.tensor(clean.T.copy()).t(), T, generator=0).numpy() == expected).all()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_input_is_neither_modified_nor_returned(exact, rate):
    T = symmetric_matrix(3, rate)
    T_before = T.copy()
    for clean in ([0, 1, 2] * 4, np.array([0, 1, 2] * 4), torch.tensor([0, 1, 2] * 4)):
        noisy = corrupt(clean, T, generator=0, exact=exact)
        assert list(clean) == [0, 1, 2] * 4
        noisy[0] = 99
        assert clean[0] == 0
    assert np.array_equal(T, T_before)


def test_matrix_is_any_array_like():
    clean = list(range(3)) * 10
    T = symmetric_matrix(3, 0.4)
    expected = corrupt(clean, T, generator=0)
    learnt = torch.tensor(T, requires_grad=True)
    for matrix in (
        T.tolist(),
        tuple(map(tuple, T)),
        torch.tensor(T),
        learnt,
        T.astype(np.float32),
        np.asfortranarray(T),
    ):
        assert corrupt(clean, matrix, generator=0) == expected
    assert corrupt(clean, np.eye(3, dtype=int), generator=0) == clean
    permutation = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert corrupt(clean, permutation, generator=0) == [1, 2, 0] * 10


def test_float32_matrix_flips_as_many_as_float64():
    T = symmetric_matrix(10, 0.4)
    noisy = corrupt(CIFAR10, torch.tensor(T, dtype=torch.float32), generator=0)
    assert (noisy != CIFAR10).sum() == 20_000


def test_row_sums_may_be_off_by_rounding():
    T = [[0.3333333, 0.3333333, 0.3333333], [0, 1, 0], [0, 0, 1]]
    got = np.bincount(corrupt([0] * 3000, T, generator=0))
    assert got.tolist() == [1000, 1000, 1000]
    assert corrupt(np.zeros(2_000_000, int), [[1 - 9e-7, 0], [0, 1]], generator=0).max() == 0  # no class to flip to


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, 3], ValueError, r"targets must be in \[0, 2\], as the matrix has 3 classes, but got 3"),
        ([0, -1], ValueError, r"targets must be in \[0, 2\], as the matrix has 3 classes, but got -1"),
        (
            torch.tensor([0, -100]),
            ValueError,
            r"targets must be in \[0, 2\], as the matrix has 3 classes, but got -100",
        ),
        (np.array([2**63], np.uint64), ValueError, r"targets must be in \[0, 2\].* but got 9223372036854775808"),
        ([0.0, 1.0], TypeError, r"targets must hold integers, but got dtype float64"),
        (torch.tensor([0.0, 1.0]), TypeError, r"targets must hold integers, but got dtype float32"),
        (np.array([True, False]), TypeError, r"targets must hold integers, but got dtype bool"),
        (["cat", "dog"], TypeError, r"targets must hold integers, but got dtype <U3"),
        ([0, None], TypeError, r"targets must hold integers, but got dtype object"),
        ([[0], [1, 2]], ValueError, r"targets must not be ragged"),
        ((0, 1), TypeError, r"targets must be a list, NumPy array or tensor of integers, but got tuple"),
        (None, TypeError, r"targets must be a list, NumPy array or tensor of integers, but got NoneType"),
    ],
)
def test_errors_of_the_targets(targets, error, message):
    with pytest.raises(error, match=message):
        corrupt(targets, np.eye(3), generator=0)


def test_dtype_must_hold_the_classes():
    with pytest.raises(ValueError, match="targets must have a dtype that holds 300 classes, but got uint8"):
        corrupt(np.zeros(5, np.uint8), symmetric_matrix(300, 0.4), generator=0)
    assert corrupt(np.zeros(5, np.uint8), symmetric_matrix(256, 0.4), generator=0).dtype == np.uint8
    assert max(corrupt([np.uint8(0)] * 5, pairflip_matrix(300, 1.0), generator=0)) == 1


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.eye(3)[:2], ValueError, r"matrix must be square, with at least 2 classes, but got shape \(2, 3\)"),
        ([0.5, 0.5], ValueError, r"matrix must be square, with at least 2 classes, but got shape \(2,\)"),
        ([[1.0]], ValueError, r"matrix must be square, with at least 2 classes, but got shape \(1, 1\)"),
        ([[1.0, 0.0], [1.0]], ValueError, r"matrix must not be ragged"),
        ([[1.5, -0.5], [0, 1]], ValueError, r"matrix must hold finite probabilities of at least 0, but got -0\.5"),
        ([[1.0, math.nan], [0, 1]], ValueError, r"matrix must hold finite probabilities of at least 0, but got nan"),
        ([[1.0, math.inf], [0, 1]], ValueError, r"matrix must hold finite probabilities of at least 0, but got inf"),
        ([[1, 0], [0.5, 0.6]], ValueError, r"matrix must be row-stochastic, .* but row 1 sums to 1\.1"),
        ([[1, 0], [0, 0]], ValueError, r"matrix must be row-stochastic, .* but row 1 sums to 0\.0"),
        ([[0.4, 0.6 - 2e-6], [0, 1]], ValueError, r"matrix must be row-stochastic, .* but row 0 sums to 0\.999998"),
        ([["1", "0"], ["0", "1"]], TypeError, r"matrix must hold real numbers, but got dtype <U1"),
        (np.eye(2, dtype=complex), TypeError, r"matrix must hold real numbers, but got dtype complex128"),
    ],
)
def test_errors_of_the_matrix(matrix, error, message):
    with pytest.raises(error, match=message):
        corrupt([0, 1], matrix, generator=0)


@pytest.mark.parametrize(
    ("generator", "error", "message"),
    [
        (None, TypeError, r"generator must be a torch\.Generator or an int seed, but got None"),
        (0.0, TypeError, r"generator must be a torch\.Generator or an int seed, but got 0\.0"),
        (True, TypeError, r"generator must be a torch\.Generator or an int seed, but got True"),
        (
            np.random.default_rng(0),
            TypeError,
            r"generator must be a torch\.Generator or an int seed, but got Generator",
        ),
        (2**64, ValueError, r"generator must be .* a seed in \[-2\*\*63, 2\*\*64\), but got 18446744073709551616"),
        (
            -(2**63) - 1,
            ValueError,
            r"generator must be .* a seed in \[-2\*\*63, 2\*\*64\), but got -9223372036854775809",
        ),
    ],
)
def test_errors_of_the_generator(generator, error, message):
    with pytest.raises(error, match=message):
        corrupt([0, 1], np.eye(2), generator=generator)


def test_generator_is_required_and_keyword_only():
    with pytest.raises(TypeError, match="generator"):
        corrupt([0, 1], np.eye(2))
    with pytest.raises(TypeError, match="positional"):
        corrupt([0, 1], np.eye(2), 0)


# NoisyLabels ----------------------------------------------------------------------------------------------------------

Sample = namedtuple("Sample", ["image", "label", "index"])


class Items(Dataset):
    """A map-style dataset of given items, with or without `.targets`."""

    def __init__(self, items, targets=None):
        self.items = items
        self.reads = 0
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.reads += 1
        return self.items[index]


LABELS = [i % 3 for i in range(30)]
PAIRS = [(f"image {i}", label) for i, label in enumerate(LABELS)]
T3 = symmetric_matrix(3, 0.4)


def test_noisy_labels_of_a_dataset_with_targets():
    data = Items(PAIRS, targets=LABELS)
    noisy = NoisyLabels(data, T3, generator=0)
    assert data.reads == 0
    assert noisy.dataset is data
    assert len(noisy) == 30
    assert noisy.targets.tolist() == corrupt(LABELS, T3, generator=0)
    assert noisy.clean_targets.tolist() == LABELS
    assert noisy.targets.dtype == noisy.clean_targets.dtype == torch.int64
    assert noisy.noise_mask.dtype == torch.bool
    assert noisy.noise_mask.sum() == 12
    for i in range(-30, 30):
        assert noisy[i] == (PAIRS[i][0], noisy.targets[i].item())
        assert type(noisy[i][1]) is int
    assert data.items == PAIRS
    assert data.targets == LABELS


@given(matrix=matrices(), data=st.data(), exact=st.booleans())
@settings(max_examples=50)
def test_noise_mask_says_where_the_labels_differ(matrix, data, exact):
    clean = data.draw(st.lists(st.integers(0, len(matrix) - 1), max_size=100))
    items = [(None, label) for label in clean]
    noisy = NoisyLabels(items, matrix, generator=0, exact=exact)
    assert noisy.clean_targets.tolist() == clean
    assert noisy.noise_mask.tolist() == [y != c for (_, y), c in zip(noisy, clean, strict=True)]
    assert len(noisy) == len(clean)


def test_exact_is_passed_on():
    noisy = NoisyLabels(Items(PAIRS, targets=LABELS), T3, generator=3, exact=False)
    assert noisy.targets.tolist() == corrupt(LABELS, T3, generator=3, exact=False)
    assert noisy.targets.tolist() != corrupt(LABELS, T3, generator=3)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda x: torch.tensor(x, dtype=torch.uint8)])
def test_where_the_clean_labels_come_from(make):
    expected = corrupt(LABELS, T3, generator=0)
    wrong = [0] * 30
    argument = Items(PAIRS, targets=wrong)
    assert NoisyLabels(argument, T3, generator=0, targets=make(LABELS)).targets.tolist() == expected
    attribute = Items([("image", 0)] * 30, targets=make(LABELS))
    assert NoisyLabels(attribute, T3, generator=0).targets.tolist() == expected
    one_pass = Items(list(zip(PAIRS, make(LABELS), strict=True)))
    assert NoisyLabels(one_pass, T3, generator=0).targets.tolist() == expected
    assert one_pass.reads == 30
    assert argument.reads == attribute.reads == 0


def test_subset_reads_its_own_labels():
    subset = Subset(Items(PAIRS, targets=LABELS), [4, 8, 1, 5])
    noisy = NoisyLabels(subset, pairflip_matrix(3, 1.0), generator=0)
    assert noisy.clean_targets.tolist() == [1, 2, 1, 2]
    assert [noisy[i] for i in range(4)] == [("image 4", 2), ("image 8", 0), ("image 1", 2), ("image 5", 0)]


def test_labels_are_drawn_once_and_owned():
    labels = torch.tensor(LABELS)
    noisy = NoisyLabels(Items(PAIRS, targets=labels), T3, generator=0)
    drawn = noisy.targets.clone()
    labels.fill_(0)
    assert noisy.clean_targets.tolist() == LABELS
    assert [noisy[i][1] for i in range(30)] == [noisy[i][1] for i in range(30)] == drawn.tolist()
    tensors = NoisyLabels(TensorDataset(torch.zeros(30, 1), torch.tensor(LABELS)), T3, generator=0)
    tensors[0][1].fill_(99)
    assert torch.equal(tensors.targets, drawn)


@pytest.mark.parametrize(
    "make",
    [
        lambda i, y: (i, y),
        lambda i, y: [i, y],
        lambda i, y: (i, y, "more", None),
        lambda i, y: Sample(i, y, index=7),
    ],
    ids=["tuple", "list", "longer tuple", "named tuple"],
)
def test_items_keep_their_type_and_the_rest(make):
    noisy = NoisyLabels([make("image", label) for label in LABELS], T3, generator=0)
    for i in range(30):
        assert noisy[i] == make("image", noisy.targets[i].item())
        assert type(noisy[i]) is type(make("image", 0))


@pytest.mark.parametrize(
    "make",
    [
        int, np.int64, np.uint8, np.array, torch.tensor, lambda y: torch.tensor(y, dtype=torch.int32),
        lambda y: torch.tensor([y]),
    ],
    ids=["int", "np.int64", "np.uint8", "0-d array", "0-d tensor", "int32 tensor", "tensor of shape (1,)"],
)  # fmt: skip
def test_labels_keep_their_type(make):
    noisy = NoisyLabels([("image", make(label)) for label in LABELS], T3, generator=0)
    for i in range(30):
        got, like = noisy[i][1], make(int(noisy.targets[i]))
        assert got == like
        assert getattr(got, "dtype", int) == getattr(like, "dtype", int)
        assert getattr(got, "shape", ()) == getattr(like, "shape", ())
    assert type(noisy[0][1]) in (type(make(0)), np.int64)  # NumPy itself makes no difference between 0-d and scalar


def test_labels_that_were_no_integers_become_ints():
    noisy = NoisyLabels([("image", "cat"), ("image", "dog")], np.eye(2)[::-1], generator=0, targets=[0, 1])
    assert [noisy[0], noisy[1]] == [("image", 1), ("image", 0)]


def test_batches_of_indices():
    x = torch.arange(30.0)
    noisy = NoisyLabels(TensorDataset(x, torch.tensor(LABELS)), T3, generator=0)
    for index in ([3, 1, 4], torch.tensor([3, 1, 4]), slice(2, 9, 3)):
        images, labels = noisy[index]
        assert torch.equal(images, x[index])
        assert torch.equal(labels, noisy.targets[index])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_loader(num_workers):
    data = TensorDataset(torch.arange(30.0), torch.tensor(LABELS))
    noisy = NoisyLabels(data, T3, generator=0)
    spawn = "spawn" if num_workers else None  # the worker gets a pickle, on every platform
    loader = DataLoader(noisy, batch_size=7, num_workers=num_workers, multiprocessing_context=spawn)
    for _ in range(2 if not num_workers else 1):
        images, labels = map(torch.cat, zip(*loader, strict=True))
        assert torch.equal(images, torch.arange(30.0))
        assert torch.equal(labels, noisy.targets)
        assert (labels != torch.tensor(LABELS)).sum() == 12


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch 2.4 warns of its own unpickling
def test_pickle():
    noisy = NoisyLabels(Items(PAIRS, targets=LABELS), T3, generator=torch.Generator().manual_seed(0))
    copy = pickle.loads(pickle.dumps(noisy))
    assert torch.equal(copy.targets, noisy.targets)
    assert torch.equal(copy.clean_targets, noisy.clean_targets)
    assert [copy[i] for i in range(30)] == [noisy[i] for i in range(30)]


def test_noise_on_noise():
    once = NoisyLabels(PAIRS, T3, generator=0)
    twice = NoisyLabels(once, T3, generator=1)
    assert torch.equal(twice.clean_targets, once.targets)
    assert twice[5] == ("image 5", twice.targets[5].item())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)

    def __len__(self):
        return len(PAIRS)


@pytest.mark.parametrize(
    ("dataset", "targets", "error", "message"),
    [
        (Stream(), None, TypeError, r"dataset must be map-style, .* but got Stream; .* noisyloss\.noise\.corrupt"),
        (iter(PAIRS), None, TypeError, r"dataset must be map-style, .* but got list_iterator"),
        (
            [{"x": 0, "y": 1}],
            None,
            TypeError,
            r"must give tuples or lists \(input, label.* a dict; wrap it in a dataset",
        ),
        ([(0,)], None, TypeError, r"must give tuples or lists \(input, label.* a tuple of length 1; wrap it"),
        ([7, 8], None, TypeError, r"must give tuples or lists \(input, label.* an item is a int; wrap it"),
        (
            [*PAIRS[:1], ("image", 1.0)],
            None,
            TypeError,
            r"item\[1\] must be a class index, but item 1 has 1\.0; .*targets=",
        ),
        ([("image", "cat")], None, TypeError, r"item\[1\] must be a class index, but item 0 has 'cat'; .*targets="),
        (PAIRS, LABELS[:-1], ValueError, r"targets must hold one label per item, shape \(30,\), but got shape \(29,\)"),
        (PAIRS, np.zeros((30, 1), int), ValueError, r"targets must hold one label per item, .* shape \(30, 1\)"),
        (PAIRS, np.zeros(30), TypeError, r"targets must hold integers, but got dtype float64"),
        (PAIRS, [3] * 30, ValueError, r"targets must be in \[0, 2\], as the matrix has 3 classes, but got 3"),
        (
            Items(PAIRS, [0]),
            None,
            ValueError,
            r"dataset\.targets, unless targets= is given, must hold one label per item",
        ),
        (
            Items(PAIRS, ["a.xml"] * 30),
            None,
            TypeError,
            r"dataset\.targets, unless targets= is given, must hold integers",
        ),
        (Items(PAIRS, "abc"), None, TypeError, r"dataset\.targets, unless targets= is given, must be a list.* got str"),
    ],
)
def test_errors_at_construction(dataset, targets, error, message):
    with pytest.raises(error, match=message):
        NoisyLabels(dataset, T3, generator=0, targets=targets)


def test_generator_and_matrix_are_checked_as_in_corrupt():
    with pytest.raises(TypeError, match="generator must be"):
        NoisyLabels(PAIRS, T3, generator=None)
    with pytest.raises(ValueError, match="matrix must be row-stochastic"):
        NoisyLabels(PAIRS, 2 * T3, generator=0)
    with pytest.raises(TypeError, match="positional"):
        NoisyLabels(PAIRS, T3, 0)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"x": 0, "y": 1},
            r"dataset must give tuples or lists \(input, label, \.\.\.\), but an item is a dict; wrap it",
        ),
        ("xy", r"dataset must give tuples or lists \(input, label, \.\.\.\), but an item is a str; wrap it"),
        ([0], r"dataset must give tuples or lists .* but an item is a list of length 1; wrap it"),
        ((0, torch.eye(3)[0]), r"item\[1\] must be a class index, but got torch\.float32 of shape \(3,\); .* argmax"),
        ((0, torch.eye(3, dtype=int)[0]), r"item\[1\] must be a class index, but got torch\.int64 of shape \(3,\)"),
        ((0, np.float64(1)), r"item\[1\] must be a class index, but got float64 of shape \(\)"),
    ],
)
def test_errors_when_an_item_is_read(item, message):
    noisy = NoisyLabels([item], T3, generator=0, targets=[1])
    with pytest.raises(TypeError, match=message):
        noisy[0]


def test_index_out_of_range():
    with pytest.raises(IndexError):
        NoisyLabels(PAIRS, T3, generator=0)[30]
