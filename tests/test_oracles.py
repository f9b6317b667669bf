"""Every loss against numpy float64, written from the papers' formulas and not from our code; and the identities."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from noisyloss import (
    AELLoss,
    AGCELoss,
    AMSELoss,
    ANLLoss,
    APLLoss,
    AULLoss,
    BootstrapLoss,
    CELoss,
    EpsilonSoftmaxLoss,
    FocalLoss,
    GCELoss,
    JALLoss,
    JSLoss,
    MAELoss,
    MSELoss,
    NCELoss,
    NFLLoss,
    NGCELoss,
    NLSLoss,
    NMAELoss,
    NNCELoss,
    NNFLLoss,
    Normalized,
    NormalizedNegative,
    NRCELoss,
    PHuberCELoss,
    PHuberGCELoss,
    PointwiseLoss,
    RCELoss,
    SCELoss,
    Symmetrized,
    TaylorCELoss,
    TruncatedGCELoss,
    UnhingedLoss,
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
    "agce": lambda p, y, a=0.6, q=0.6: ((a + 1) ** q - (a + p[y]) ** q) / q,
    "aul": lambda p, y, a=5.5, q=3.0: ((a - p[y]) ** q - (a - 1) ** q) / q,
    "ael": lambda p, y, a=2.5: np.exp(-p[y] / a),
    "amse": lambda p, y, a=30.0: ((a * np.eye(len(p))[y] - p) ** 2).mean(),
    "anorm": lambda z, y, a=1.5, p=0.9: ((np.abs(a * np.eye(len(z))[y] - z) ** p).sum() - (a - 1) ** p) / p,
    "nl": lambda p, y, p_min=1e-5: -np.log(np.delete(1 - p, y).clip(p_min)).mean(),
    "mse": lambda p, y: ((np.eye(len(p))[y] - p) ** 2).mean(),
    "phuber-ce": lambda p, y, tau=2.0: -np.log(p[y]) if p[y] > 1 / tau else -tau * p[y] + np.log(tau) + 1,
    "phuber-gce": lambda p, y, q=0.7, tau=10.0: phuber_gce(p[y], q, tau, tau ** (1 / (q - 1))),
    "taylor-ce": lambda p, y, t=2: sum((1 - p[y]) ** i / i for i in range(1, t + 1)),
    "tgce": lambda p, y, q=0.7, k=0.5: (1 - p[y] ** q) / q if p[y] > k else (1 - k**q) / q,
    "nnce": lambda p, y, p_min=1e-7: normalized_negative(p, y, p_min, lambda p: -np.log(p)),
    "nnfl": lambda p, y, gamma=0.5, p_min=1e-7, detach_modulator=False: normalized_negative(
        p, y, p_min, lambda p: -((1 - p) ** gamma) * np.log(p)
    ),
    "anl-ce": lambda p, y, alpha=5.0, beta=5.0, gamma=0.0, **more: (
        alpha * ORACLES["nfl"](p, y, gamma) + beta * ORACLES["nnfl"](p, y, gamma, **more)
    ),
    "anl-fl": lambda p, y: 5 * ORACLES["nfl"](p, y) + 5 * ORACLES["nnfl"](p, y),
    "jal-ce": lambda p, y, alpha=1.0, beta=1.0, a=30.0, gamma=0.0, detach_modulator=False: (
        alpha * ORACLES["nfl"](p, y, gamma) + beta * ORACLES["amse"](p, y, a)
    ),
    "jal-fl": lambda p, y: ORACLES["nfl"](p, y) + ORACLES["amse"](p, y),
    "unhinged": lambda p, y: -np.log(p[y]) + np.log(p).mean(),
    "nls": lambda p, y, r=-0.2: -(((1 - r) * np.eye(len(p))[y] + r / len(p)) * np.log(p)).sum(),
    "bootstrap": lambda p, y, t=0.05: -(((1 - t) * np.eye(len(p))[y] + t * p) * np.log(p)).sum(),
    "epsilon-ce": lambda p, y, m=1e5, gamma=0.0, p_min=1e-8, detach_modulator=False: ORACLES["focal"](
        epsilon_softmax(p, m).clip(p_min), y, gamma
    ),
    "epsilon-focal": lambda p, y: ORACLES["epsilon-ce"](p, y, gamma=0.1),
    "js": lambda p, y, pi=0.7, scaled=True: (
        jensen_shannon(np.eye(len(p))[y], p, pi) / (-(1 - pi) * np.log(1 - pi) if scaled else 1)
    ),
}


def phuber_gce(u, q, tau, threshold):
    return (1 - u**q) / q if u > threshold else -tau * u + tau * threshold + (1 - threshold**q) / q


def normalized_negative(p, y, p_min, f):
    share = f(p_min) - f(np.clip(p, p_min, 1))
    return 1 - share[y] / share.sum()


def epsilon_softmax(p, m):
    return (p + m * np.eye(len(p))[p.argmax()]) / (m + 1)


def jensen_shannon(e, p, pi):
    mean = pi * e + (1 - pi) * p
    return pi * (e[e > 0] * np.log(e[e > 0] / mean[e > 0])).sum() + (1 - pi) * (p * np.log(p / mean)).sum()


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
    if passive == "mae" and "epsilon" in active:
        return 0.01 * ORACLES[active](p, y) + 5 * np.abs(np.eye(len(p))[y] - p).sum()
    if passive in ZHOU:
        return ORACLES[active](p, y) + 4 * ORACLES[passive](p, y, **ZHOU[passive])
    return ORACLES[active](p, y) + ORACLES[passive](p, y)


ZHOU = {"agce": {"a": 6, "q": 1.5}, "aul": {"a": 6.3, "q": 1.5}, "ael": {"a": 5}}  # with alpha = 1, beta = 4


def test_every_single_loss_has_an_oracle():
    assert {*ORACLES, *ORACLES_OF_LOGITS} == {id for id in list_losses() if "+" not in id}


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 5), c=st.integers(2, 12))
def test_equals_the_formula(make_loss, seed, scale, c):
    id, settings = make_loss.args[0], make_loss.keywords
    z = scale * np.random.default_rng(seed).standard_normal((4, c))
    y = np.arange(4) % c
    expected = [oracle(id, z[i], y[i], **settings) for i in range(4)]
    values = make_loss(reduction="none")(torch.from_numpy(z), torch.from_numpy(y))
    naive_digits_lost = 1e-13 + 4e-15 / settings.get("q", 1)  # by a**q - (a - p)**q and (1 - p**q) / q; not by ours
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=naive_digits_lost)


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


class _Affine(torch.nn.Module):
    """scale · loss + shift, for identities that hold up to constants."""

    def __init__(self, loss, scale=1.0, shift=0.0):
        super().__init__()
        self.loss, self.scale, self.shift = loss, scale, shift

    def forward(self, input, target):
        self.loss.reduction = self.reduction
        return self.scale * self.loss(input, target) + self.shift


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
        (APLLoss(alpha=1, beta=1, warmup=False), create_loss("nce+rce"), 0),
        (APLLoss("nce", "rce", 10, 0.1), APLLoss("nce", "mae", 10, -0.1 * LOG_ZERO), 1e-12),
        (create_loss("nfl+mae"), WeightedSum([NFLLoss(), MAELoss()], [1, 1]), 0),
        (Normalized(GCELoss(0.3)), NGCELoss(0.3), 0),
        (FocalLoss(2.0, detach_modulator=True), FocalLoss(2.0), 0),
        (AGCELoss(a=3.0, q=1.0), MAELoss(), 1e-12),
        (AGCELoss(a=1e-12, q=0.7), GCELoss(0.7), 1e-7),
        (AULLoss(a=3.0, q=1.0), MAELoss(), 1e-12),
        (AULLoss(a=2.0, q=2.0), TaylorCELoss(2), 1e-12),  # (2-p)² - 1 = 2 (1-p) + (1-p)²
        (NNCELoss(1e-3), NormalizedNegative(CELoss(), 1e-3), 0),
        (NNFLLoss(0.0), NNCELoss(), 1e-12),
        (NormalizedNegative(MAELoss(), 0.0), MAELoss(), 1e-12),
        (ANLLoss(gamma=1e-300), ANLLoss(), 1e-12),
        (create_loss("anl-ce"), WeightedSum([NCELoss(), NNCELoss()], [5, 5]), 0),
        (create_loss("anl-fl"), WeightedSum([NFLLoss(0.5), NNFLLoss(0.5)], [5, 5]), 0),
        (create_loss("jal-ce", beta=2), WeightedSum([NCELoss(), AMSELoss(30)], [1, 2]), 0),
        (create_loss("jal-fl"), WeightedSum([NFLLoss(), AMSELoss(30)], [1, 1]), 0),
        (JALLoss(gamma=1e-300), JALLoss(), 1e-12),
        (AMSELoss(1.0), MSELoss(), 0),
        (WeightedSum([MSELoss(), MAELoss()], [1, 2 * 29 / 6]), _Affine(AMSELoss(30), 1, -((30 - 1) ** 2) / 6), 1e-11),
        (JSLoss(1e-9), CELoss(), 1e-6),
        (JSLoss(0.5), _Affine(JSLoss(0.5, scaled=False), 2 / math.log(2)), 1e-12),
        (PHuberCELoss(1e9), CELoss(), 1e-12),
        (PHuberGCELoss(1e-9, 5), PHuberCELoss(5), 1e-7),
        (PHuberGCELoss(0.7, 1e9), GCELoss(0.7), 1e-12),
        (TaylorCELoss(1), MAELoss(), 1e-12),
        (TruncatedGCELoss(0.7, 0.0), GCELoss(0.7), 1e-12),
        (TruncatedGCELoss(0.7, 1e-9), GCELoss(0.7), 1e-12),
        (NLSLoss(0.0), CELoss(), 1e-12),
        (NLSLoss(0.3), CELoss(label_smoothing=0.3), 1e-12),
        (BootstrapLoss(0.0), CELoss(), 1e-12),
        (EpsilonSoftmaxLoss(0.0), CELoss(), 1e-12),
        (create_loss("epsilon-focal", m=0), FocalLoss(0.1), 1e-12),
        (EpsilonSoftmaxLoss(50.0, 1e-300), EpsilonSoftmaxLoss(50.0), 1e-12),
        (UnhingedLoss(), Symmetrized(CELoss()), 0),
        (Symmetrized(GCELoss(1e-9)), UnhingedLoss(), 1e-6),
        (_Affine(Symmetrized(MAELoss()), 1, 5 / 6), MAELoss(), 1e-12),
        (NLSLoss(-3.0), WeightedSum([CELoss(), UnhingedLoss()], [1, 3]), 1e-12),
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


def test_js_goes_to_mae_as_slowly_as_a_logarithm():
    """f = 1 - p + (1 - p + p log p) / log(1 / (1 - pi)) + o."""
    p = np.linspace(0.01, 1, 20)
    for pi, tolerance in ((1 - 1e-6, 1e-4), (1 - 1e-9, 1e-6)):
        first_order = (1 - p + p * np.log(p)) / -math.log1p(-pi)
        np.testing.assert_allclose(JSLoss(pi).at(p), 1 - p + first_order, atol=tolerance)


def test_amse_is_mae_with_a_penalty_on_sure_predictions(generator):
    input, target = 3 * torch.randn(50, 10, dtype=torch.float64, generator=generator), torch.arange(50) % 10
    p = input.softmax(1)
    expected = 6 * MAELoss(reduction="none")(input, target) + p.square().sum(1) / 10 + (900 - 60) / 10
    torch.testing.assert_close(AMSELoss(30, reduction="none")(input, target), expected)


def test_mse_is_that_of_torch_on_the_probabilities(generator):
    input, target = torch.randn(50, 10, dtype=torch.float64, generator=generator), torch.arange(50) % 10
    one_hot = torch.nn.functional.one_hot(target, 10).double()
    torch.testing.assert_close(MSELoss()(input, target), torch.nn.functional.mse_loss(input.softmax(1), one_hot))


def test_nnce_is_flat_where_every_other_class_is_at_p_min():
    input = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)
    for label, expected in ((0, 0.0), (1, 1.0)):
        value = NNCELoss()(input, torch.tensor([label]))
        assert value.item() == expected
        assert (torch.autograd.grad(value, input)[0] == 0).all()


def test_epsilon_softmax_keeps_the_digits_of_a_large_m():
    """In float32, (p + m) / (m + 1) knows p to 1/128 only."""
    p = torch.tensor([[0.6, 0.4]])
    value = EpsilonSoftmaxLoss(1e5)(p.log(), torch.tensor([0])).item()
    assert value == pytest.approx(-math.log((0.6 + 1e5) / (1e5 + 1)), rel=1e-5)


def test_epsilon_softmax_treats_all_of_a_tie_as_the_argmax():
    tie = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    values = EpsilonSoftmaxLoss(9.0, reduction="none")(tie.expand(3, 3), torch.arange(3))
    p = tie.softmax(1)[0]
    expected = -torch.stack([(p[0] + 9) / 10, (p[1] + 9) / 10, p[2] / 10]).log()
    torch.testing.assert_close(values, expected)


def test_bootstrapping_has_its_gradient_through_the_prediction_in_the_target():
    leaf = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(BootstrapLoss(0.5)(leaf, torch.tensor([1])), leaf)
    p = leaf.detach().softmax(1)
    entropy = -(p * p.log()).sum()
    one_hot = torch.tensor([[0.0, 1.0, 0.0]])
    torch.testing.assert_close(grad, 0.5 * (p - one_hot) - 0.5 * p * (p.log() + entropy))


@pytest.mark.parametrize("a", [1e-5, 1e-40])
def test_agce_of_a_small_a_keeps_its_gradient(a):
    input = torch.tensor([[-12.0, 0.0], [-300.0, 0.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(AGCELoss(a, 0.5, reduction="sum")(input, torch.tensor([0, 0])), input)
    u = input.detach().double().softmax(1)[:, 0]
    torch.testing.assert_close(grad[:, 0].double(), -u * (a + u) ** -0.5, rtol=1e-4, atol=1e-7)


def test_the_taylor_series_converges_to_cross_entropy():
    p = np.linspace(0.01, 1, 20)
    np.testing.assert_allclose(TaylorCELoss(3000).at(p), -np.log(p), atol=1e-12)


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
        (NNCELoss(), 9),
        (ANLLoss(), 5 + 45),
        (UnhingedLoss(), 0),
        (AGCELoss(2, 1), 9),
        (AULLoss(2, 1), 9),
        (TaylorCELoss(1), 9),
        (AELLoss(), None),
        (JALLoss(), None),
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


def test_every_class_function_has_the_derivative_of_its_value():
    log_p = torch.linspace(-15.9, -0.1, 40, dtype=torch.float64).requires_grad_()
    functions = {f for id in list_losses() for loss in [create_loss(id)] for f in loss.sums}
    functions |= {create_loss(id) for id in list_losses() if isinstance(create_loss(id), PointwiseLoss)}
    assert len(functions) > 20
    for function in functions:
        value = function.f(log_p)
        expected = torch.autograd.grad(value.sum(), log_p)[0] if value.requires_grad else torch.zeros_like(log_p)
        slope = function.derivative(log_p.detach(), log_p.detach().exp())
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)
        if function.affine:
            torch.testing.assert_close(value, function.affine[0] + function.affine[1] * log_p)


def test_class_sums_do_not_depend_on_whether_p_is_at_hand(generator):
    log_p = (5 * torch.randn(20, 7, dtype=torch.float64, generator=generator)).log_softmax(1)
    for function in {f for id in list_losses() for f in create_loss(id).sums}:
        with torch.no_grad():
            sums = function.class_sum(log_p), function.class_sum(log_p, log_p.exp())
        torch.testing.assert_close(*sums, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", [MAELoss(), GCELoss(0.3), AGCELoss(1.0, 2.0)], ids=lambda loss: loss._describe())
@pytest.mark.parametrize("num_classes", [2, 4])
def test_bounds_of_symmetrized_losses_are_tight(loss, num_classes):
    corners = torch.tensor([[50.0, 0, 0, 0], [-50.0, 0, 0, 0], [-100.0, 0, -50, -50]], dtype=torch.float64)
    values = Symmetrized(loss, reduction="none")(corners[:, :num_classes], torch.zeros(3, dtype=torch.long))
    low, high = Symmetrized(loss).bounds(num_classes)
    assert (values.min().item(), values.max().item()) == pytest.approx((low, high), abs=1e-6)


def test_class_sum_ranges_by_hand():
    assert AMSELoss(3.0).class_sum_range(4) == pytest.approx((9 - 1.5 + 0.25, 9 - 1.5 + 1))
    assert NLSLoss().class_sum_range(4) == pytest.approx((4 * math.log(4), math.inf))
    assert BootstrapLoss(0.5).class_sum_range(4) == pytest.approx((2 * math.log(4), math.inf))
    assert UnhingedLoss().class_sum_range(4) == (0, 0)
