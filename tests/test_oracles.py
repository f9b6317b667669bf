"""Every loss against numpy float64, written from the papers' formulas and not from our code; and the identities."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from noisyloss import (
    APLLoss,
    CELoss,
    FocalLoss,
    GCELoss,
    MAELoss,
    NCELoss,
    NFLLoss,
    NGCELoss,
    NMAELoss,
    Normalized,
    NRCELoss,
    PointwiseLoss,
    RCELoss,
    SCELoss,
    WeightedSum,
    create_loss,
    list_losses,
)

LOG_ZERO = -9.210340371976184

# Each gives the loss of class y under the probabilities p of one sample.
ORACLES = {
    "ce": lambda p, y: -np.log(p[y]),
    "focal": lambda p, y, gamma=0.5, detach_modulator=False: -((1 - p[y]) ** gamma) * np.log(p[y]),
    "mae": lambda p, y: np.abs(np.eye(len(p))[y] - p).sum() / 2,
    "rce": lambda p, y, A=LOG_ZERO: -(p * np.where(np.arange(len(p)) == y, 0.0, A)).sum(),
    "gce": lambda p, y, q=0.7: (1 - p[y] ** q) / q,
    "sce": lambda p, y, alpha=0.1, beta=1.0, A=LOG_ZERO: alpha * -np.log(p[y]) - beta * A * (1 - p[y]),
    "nce": lambda p, y: np.log(p[y]) / np.log(p).sum(),
    "nfl": lambda p, y, gamma=0.5, detach_modulator=False: (
        (1 - p[y]) ** gamma * np.log(p[y]) / ((1 - p) ** gamma * np.log(p)).sum()
    ),
    "nmae": lambda p, y: (1 - p[y]) / (len(p) - 1),
    "nrce": lambda p, y, A=LOG_ZERO: (1 - p[y]) / (len(p) - 1),
    "ngce": lambda p, y, q=0.1: (1 - p[y] ** q) / (len(p) - (p**q).sum()),
}


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def tempered(z, t):
    """exp_t(z - lambda), where lambda is found by bisection."""
    if t == 1:
        return softmax(z)
    low, high = z.max(), z.max() + (len(z) ** (t - 1) - 1) / (t - 1)  # the largest entry alone, all equal to it
    for _ in range(200):
        middle = (low + high) / 2
        p = (1 - (1 - t) * (middle - z)) ** (1 / (1 - t))
        low, high = (middle, high) if p.sum() > 1 else (low, middle)
    return p


def log_t(x, t):
    return np.log(x) if t == 1 else (x ** (1 - t) - 1) / (1 - t)


def sparse(z, y, tau=0.5, p=0.1, lam=1.2):
    probabilities = softmax(z / np.sqrt((z**2).sum()) / tau)
    return -np.log(probabilities[y]) + lam * (probabilities**p).sum()


def ldr(z, y, lam=10.0, margin=0.1):
    s = np.log(1 + np.exp(z))
    s /= s.mean()
    return lam * np.log(np.mean([np.exp((margin * (k != y) + s[k] - s[y]) / lam) for k in range(len(z))]))


def bitempered(z, y, t1=0.8, t2=1.2):
    p, q = tempered(z, t2), np.eye(len(z))[y]
    of_q = [q_k * log_t(q_k, t1) if q_k else 0.0 for q_k in q]
    return (of_q - q * log_t(p, t1) - (q ** (2 - t1) - p ** (2 - t1)) / (2 - t1)).sum()


ORACLES_OF_LOGITS = {
    "logitclip": lambda z, y, tau=1.0: -np.log(softmax(z * min(1, tau / np.sqrt((z**2).sum())))[y]),
    "sr": sparse,
    "ldr": ldr,
    "bitempered": bitempered,
}


def oracle(id, z, y, **settings):
    if id in ORACLES_OF_LOGITS:
        return ORACLES_OF_LOGITS[id](z, y, **settings)
    p = softmax(z)
    if "+" not in id:
        return ORACLES[id](p, y, **settings)
    active, passive = id.split("+")
    return ORACLES[active](p, y) + ORACLES[passive](p, y)  # the published sums so far: alpha = beta = 1


def test_every_single_loss_has_an_oracle():
    assert {*ORACLES, *ORACLES_OF_LOGITS} == {id for id in list_losses() if "+" not in id}


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 5), c=st.integers(2, 12))
def test_equals_the_formula(make_loss, seed, scale, c):
    id, settings = make_loss.args[0], make_loss.keywords
    z = scale * np.random.default_rng(seed).standard_normal((4, c))
    y = np.arange(4) % c
    expected = [oracle(id, z[i], y[i], **settings) for i in range(4)]
    values = make_loss(reduction="none")(torch.from_numpy(z), torch.from_numpy(y))
    naive_digits_lost = 1e-15 / settings.get("q", 1)  # by A (1 - p) and (1 - p**q) / q; ours loses none
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=4 * naive_digits_lost)


def test_hand_worked_numbers():
    input = torch.tensor([[math.log(4), math.log(3), math.log(2), 0.0]], dtype=torch.float64)  # p = .4 .3 .2 .1
    target = torch.tensor([1])
    for id, expected in {
        "ce": -math.log(0.3),
        "mae": 0.7,
        "rce": 0.7 * 4 * math.log(10),
        "nmae": 0.7 / 3,
        "nce": math.log(0.3) / math.log(0.0024),
        "nce+mae": math.log(0.3) / math.log(0.0024) + 0.7,
        "sce": -0.1 * math.log(0.3) + 0.7 * 4 * math.log(10),
    }.items():
        assert create_loss(id)(input, target).item() == pytest.approx(expected, rel=1e-12), id


@pytest.mark.parametrize(
    ("ours", "other", "tolerance"),
    [
        (FocalLoss(0.0), CELoss(), 0),
        (GCELoss(1.0), MAELoss(), 1e-12),
        (GCELoss(1e-9), CELoss(), 1e-7),
        (NGCELoss(1.0), NMAELoss(), 1e-12),
        (NGCELoss(1e-9), NCELoss(), 1e-7),
        (NFLLoss(0.0), NCELoss(), 1e-12),
        (NRCELoss(), NMAELoss(), 1e-12),
        (NRCELoss(A=-2), NRCELoss(), 1e-12),
        (RCELoss(A=-1), MAELoss(), 1e-12),
        (SCELoss(1.0, 0.0), CELoss(), 1e-12),
        (SCELoss(0.0, 1.0), RCELoss(), 1e-12),
        (APLLoss(alpha=1, beta=1, logit_bias=0.0), create_loss("nce+rce"), 0),
        (APLLoss("nce", "rce", 10, 0.1), APLLoss("nce", "mae", 10, -0.1 * LOG_ZERO), 1e-12),
        (create_loss("nfl+mae"), WeightedSum([NFLLoss(), MAELoss()], [1, 1]), 0),
        (Normalized(GCELoss(0.3)), NGCELoss(0.3), 0),
        (FocalLoss(2.0, detach_modulator=True), FocalLoss(2.0), 0),
    ],
    ids=repr,
)
def test_identities(ours, other, tolerance, generator):
    input = 3 * torch.randn(50, 6, dtype=torch.float64, generator=generator)
    target = torch.randint(6, (50,), generator=generator)
    ours.reduction = other.reduction = "none"
    expected = other(input, target)
    assert expected.std() > 0
    torch.testing.assert_close(ours(input, target), expected, rtol=tolerance, atol=tolerance)


def test_normalised_and_pointwise_at_the_uniform_prediction():
    input = torch.zeros(1, 5, dtype=torch.float64)
    for id in ("nce", "nfl", "nmae", "nrce", "ngce"):
        assert create_loss(id)(input, torch.tensor([3])).item() == pytest.approx(1 / 5)


def test_gce_keeps_its_digits_as_q_vanishes():
    """In float32 the naive (1 - p**q) / q gives 2.98 for 3.00."""
    input = torch.tensor([[0.0, math.log(math.exp(3) - 1)]])  # p_0 = exp(-3)
    assert GCELoss(1e-6)(input, torch.tensor([0])).item() == pytest.approx(3.0, rel=1e-5)


def test_a_detached_modulator_is_a_constant_factor():
    """The gradient of focal is then that of cross entropy, times (1 - p_y)**gamma."""
    input = torch.tensor([[math.log(4), math.log(3), math.log(2), 0.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1])
    (ce,) = torch.autograd.grad(CELoss()(input, target), input)
    (detached,) = torch.autograd.grad(FocalLoss(2.0, detach_modulator=True)(input, target), input)
    (true,) = torch.autograd.grad(FocalLoss(2.0)(input, target), input)
    torch.testing.assert_close(detached, 0.7**2 * ce)
    torch.testing.assert_close(true, (0.7**2 - 2 * 0.7 * 0.3 * math.log(0.3)) * ce)


def test_a_detached_modulator_reaches_the_normaliser(path):
    """Numerator and denominator both: d log(p_y)/dz scaled by modulators that are constants."""
    input = torch.tensor([[math.log(4), math.log(3), math.log(2), 0.0]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(NFLLoss(2.0, detach_modulator=True)(input, torch.tensor([1])), input)
    leaf = input.detach().clone().requires_grad_()
    log_p = leaf.log_softmax(1)
    terms = torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64) ** 2 * log_p
    (expected,) = torch.autograd.grad((terms[:, 1] / terms.sum(1)).sum(), leaf)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    ("num_classes", "q", "high"), [(10, 0.7, 0.1240), (10, 0.1, 0.3603), (100, 0.7, 0.0104), (2, 0.5, 1.0)]
)
def test_ngce_bound_by_hand(num_classes, q, high):
    """At p_y = 0 and the rest uniform: 1 / (C - (C - 1)**(1 - q))."""
    assert NGCELoss(q).bounds(num_classes)[1] == pytest.approx(1 / (num_classes - (num_classes - 1) ** (1 - q)))
    assert NGCELoss(q).bounds(num_classes)[1] == pytest.approx(high, abs=1e-4)


class _Concave(PointwiseLoss):
    def f(self, log_p):
        return 1 - torch.exp(3 * log_p)


class _Sigmoid(PointwiseLoss):
    """Neither convex nor concave in p, and above zero everywhere."""

    def f(self, log_p):
        return 0.1 + torch.sigmoid(5 - 15 * torch.exp(log_p))


@pytest.mark.parametrize("loss", [_Concave(), _Sigmoid()], ids=["concave", "sigmoid"])
def test_bounds_of_normalized_anything_are_valid(loss, generator):
    for c in (2, 3, 5, 20):
        low, high = Normalized(loss).bounds(c)
        p = torch.distributions.Dirichlet(torch.full((c,), 0.05, dtype=torch.float64)).sample((20_000,))
        corners = torch.eye(c, dtype=torch.float64)
        uniform_rest = (1 - corners) / (c - 1)
        few = torch.tril(torch.ones(c, c, dtype=torch.float64)) / torch.arange(1, c + 1).unsqueeze(1)
        log_p = torch.cat([p, corners, uniform_rest, few]).clamp(min=1e-300).log()
        values = Normalized(loss, reduction="none")(log_p, torch.full((len(log_p),), c - 1))
        assert low - 1e-9 <= values.min()
        assert values.max() <= high + 1e-9
        if isinstance(loss, _Concave):
            assert values.max() == pytest.approx(high)
            assert values.min() == pytest.approx(low)


@pytest.mark.parametrize("loss", [_Concave(), _Sigmoid()], ids=["concave", "sigmoid"])
def test_a_loss_without_a_closed_form_derivative_can_be_normalized(loss, path, generator):
    input = torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(Normalized(loss), (input, torch.tensor([0, 1, 2, 3, 0])))
    assert torch.autograd.gradgradcheck(Normalized(loss), (input, torch.tensor([0, 1, 2, 3, 0])))


@pytest.mark.parametrize(
    ("loss", "constant"),
    [
        (MAELoss(), 9),
        (RCELoss(), -9 * LOG_ZERO),
        (GCELoss(1.0), 9),
        (NCELoss(), 1),
        (create_loss("nce+rce"), 1 - 9 * LOG_ZERO),
        (create_loss("nfl+mae"), 10),
        (create_loss("mae+rce"), 9 - 9 * LOG_ZERO),
        (SCELoss(alpha=0), -9 * LOG_ZERO),
        (SCELoss(), None),
        (GCELoss(0.999), None),
        (WeightedSum([NCELoss(), WeightedSum([MAELoss(), NFLLoss()], [2, 3])], [1, 1]), 1 + 18 + 3),
    ],
    ids=repr,
)
def test_symmetry_constants_by_hand(loss, constant):
    assert loss.symmetry_constant(10) == (None if constant is None else pytest.approx(constant))


def test_the_log_softmax_is_computed_once_whatever_the_number_of_members(monkeypatch, generator):
    calls = []
    plain = torch.nn.functional.log_softmax
    monkeypatch.setattr("torch.nn.functional.log_softmax", lambda *a, **kw: calls.append(a) or plain(*a, **kw))
    losses = [loss for loss in map(create_loss, list_losses()) if loss._plain]  # a link has its own
    loss = WeightedSum(losses, [1.0] * len(losses))
    input, soft = torch.randn(4, 5, generator=generator), torch.rand(4, 5, generator=generator)
    for target in (torch.tensor([0, 1, 2, 3]), soft):
        calls.clear()
        loss(input, target)
        assert len(calls) == 1
