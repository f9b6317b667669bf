"""The asymmetry ratio, against brute force on the simplex: above it the vertex is the minimum, below it need not be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from noisyloss import (
    AELLoss,
    AGCELoss,
    AMSELoss,
    AULLoss,
    CELoss,
    GCELoss,
    JALLoss,
    MAELoss,
    NCELoss,
    NMAELoss,
    NNCELoss,
    PHuberCELoss,
    PHuberGCELoss,
    Symmetrized,
    TaylorCELoss,
    TruncatedGCELoss,
    WeightedSum,
    create_loss,
)

C = 4
PROVED = {
    "agce": 1.48,
    "aul": 1.49,
    "ael": 1.49,
    "amse": 33 / 29,
    "phuber-ce": 2.0,
    "phuber-gce": 10.0,
    "taylor-ce": 2.0,
    "tgce": 1.0,
    "mae": 1.0,
    "rce": 1.0,
    "nmae": 1.0,
    "nrce": 1.0,
    "mae+rce": 1.0,
    "nnce": 1.0,
    "nnfl": 1.0,
}


def test_where_something_is_proved(make_loss):
    ratio = make_loss().asymmetry_ratio(C)
    if not make_loss.keywords:
        assert ratio == pytest.approx(PROVED.get(make_loss.args[0], math.inf), rel=5e-3)
    assert ratio >= 1
    assert make_loss(weight=torch.arange(1.0, C + 1)).asymmetry_ratio(C) == math.inf
    assert make_loss(logit_bias=1.0).asymmetry_ratio(C) == math.inf


def simplex(rng, n=3000):
    """Log-probabilities of points all over the simplex, many of them near its corners, edges and faces."""
    p = [rng.dirichlet([concentration] * C, n) for concentration in (0.05, 0.3, 1.0)]
    for step in np.logspace(-7, -0.1, 30):
        spread = (1 - step) * np.eye(C) + step * (1 - np.eye(C)) / (C - 1)
        towards_one = (1 - step) * np.eye(C)[:, None] + step * np.eye(C)
        p += [spread, towards_one.reshape(-1, C)]
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.maximum(np.log(np.concatenate(p)), -1e3))


def excess(loss, log_p, weights):
    """How much the weighted loss of every point exceeds that of the vertex of the largest weight, in its own units."""

    def risk(log_p):
        values = torch.stack([loss(log_p, torch.full((len(log_p),), k)) for k in range(C)], 1)
        return values @ torch.from_numpy(weights)

    vertex = torch.full((1, C), -1e3, dtype=torch.float64)
    vertex[0, weights.argmax()] = 0
    return (risk(log_p) - risk(vertex)) / weights.sum()


def test_the_vertex_of_the_largest_weight_is_the_minimum_above_the_ratio(make_loss):
    loss = make_loss(reduction="none")
    ratio = loss.asymmetry_ratio(C)
    if math.isinf(ratio):
        pytest.skip("nothing is proved")
    rng = np.random.default_rng(0)
    log_p = simplex(rng)
    for i in range(8):
        weights = rng.uniform(0.2, 1, C) if i else np.ones(C)
        largest = rng.integers(C)
        weights[largest] = 0
        weights[largest] = 1.001 * ratio * weights.max()
        assert excess(loss, log_p, weights).min() > -1e-12


@pytest.mark.parametrize(
    "loss",
    [
        AGCELoss(),
        AGCELoss(1.0, 0.3),
        AGCELoss(6.0, 1.5),
        AULLoss(),
        AULLoss(3.0, 0.1),
        AELLoss(),
        AELLoss(0.5),
        AMSELoss(),
        AMSELoss(2.0),
        PHuberCELoss(),
        PHuberGCELoss(0.5, 3.0),
        TaylorCELoss(3),
        TruncatedGCELoss(),
        MAELoss(),
        NNCELoss(),
    ],
    ids=lambda loss: loss._describe(),
)
def test_below_the_ratio_it_need_not_be(loss):
    """With all other weights equal, the worst case; a ratio of 1 cannot be undercut by any weight that is largest."""
    loss.reduction = "none"
    ratio = loss.asymmetry_ratio(C)
    weights = np.ones(C)
    weights[0] = 0.98 * ratio
    lowest = excess(loss, simplex(np.random.default_rng(0)), weights).min()
    assert lowest < -1e-10 or weights.argmax() != 0


def test_by_hand():
    assert AGCELoss(1.0, 0.5).asymmetry_ratio(10) == pytest.approx(math.sqrt(2))
    assert AULLoss(2.0, 3.0).asymmetry_ratio(10) == pytest.approx(4)
    assert AELLoss(1.0).asymmetry_ratio(10) == pytest.approx(math.e)
    assert AELLoss(1e-6).asymmetry_ratio(10) == math.inf
    assert AMSELoss(9.0).asymmetry_ratio(10) == pytest.approx(2.25)  # 10 classes, 80 % noise: 0.2 / (0.8 / 9)
    assert AMSELoss(1.0).asymmetry_ratio(10) == math.inf
    assert Symmetrized(MAELoss()).asymmetry_ratio(10) == NMAELoss().asymmetry_ratio(10) == 1
    assert Symmetrized(CELoss()).asymmetry_ratio(10) == NCELoss().asymmetry_ratio(10) == math.inf
    assert WeightedSum([AELLoss(), AGCELoss()], [1, 1]).asymmetry_ratio(10) == AELLoss().asymmetry_ratio(10)
    assert JALLoss().asymmetry_ratio(10) == math.inf
    assert JALLoss(alpha=0).asymmetry_ratio(10) == AMSELoss().asymmetry_ratio(10)
    assert create_loss("nce+agce", alpha=0).asymmetry_ratio(10) == 1
    assert GCELoss(1.0).asymmetry_ratio(10) == 1
