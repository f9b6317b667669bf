"""Bad input is refused with a message that names the argument, what was expected and what came."""

from __future__ import annotations

import re

import pytest
import torch

import noisyloss as nl

INPUT, TARGET = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nl.CELoss(reduction="avg"), ValueError, "reduction: expected 'none', 'mean' or 'sum'; got 'avg'"),
        (lambda: nl.CELoss(weight=[1.0, 2.0]), TypeError, "weight: expected a floating point tensor"),
        (lambda: nl.CELoss(weight=torch.ones(3, 1)), ValueError, "weight: expected shape (C); got (3, 1)"),
        (lambda: nl.CELoss(weight=torch.tensor([1, 2])), TypeError, "weight: expected a floating point tensor"),
        (lambda: nl.CELoss(ignore_index=1.5), TypeError, "ignore_index: expected an int; got 1.5"),
        (lambda: nl.CELoss(label_smoothing=1.5), ValueError, "expected 0 <= label_smoothing <= 1; got 1.5"),
        (lambda: nl.GCELoss(q=-0.1), ValueError, "q: expected 0 < q <= 1; got -0.1"),
        (lambda: nl.GCELoss(q=0), ValueError, "q: expected 0 < q <= 1; got 0"),
        (lambda: nl.NGCELoss(q=1.1), ValueError, "q: expected 0 < q <= 1; got 1.1"),
        (lambda: nl.GCELoss(q="0.7"), TypeError, "q: expected a number, 0 < q <= 1; got '0.7' of type str"),
        (lambda: nl.GCELoss(q=float("nan")), ValueError, "q: expected 0 < q <= 1; got nan"),
        (lambda: nl.FocalLoss(gamma=-1), ValueError, "gamma: expected gamma >= 0; got -1"),
        (lambda: nl.FocalLoss(detach_modulator=2), TypeError, "detach_modulator: expected a bool; got 2"),
        (lambda: nl.RCELoss(A=1e-4), ValueError, "A: expected A < 0; got 0.0001"),
        (lambda: nl.SCELoss(alpha=-1), ValueError, "alpha: expected alpha >= 0; got -1"),
        (lambda: nl.APLLoss(beta=-1), ValueError, "beta: expected beta >= 0; got -1"),
        (lambda: nl.APLLoss(active="nope"), ValueError, "active: expected one of"),
        (lambda: nl.APLLoss(passive=3), TypeError, "passive: expected a loss of this package; got 3"),
        (lambda: nl.APLLoss(torch.nn.CrossEntropyLoss()), TypeError, "active: expected a loss of this package"),
        (lambda: nl.APLLoss(nl.NCELoss(reduction="sum")), ValueError, "active: expected a loss without options of its"),
        (lambda: nl.APLLoss(passive=nl.MAELoss(weight=torch.ones(3))), ValueError, "passive: expected a loss without"),
        (lambda: nl.WeightedSum([nl.CELoss(ignore_index=0)], [1]), ValueError, "losses[0]: expected a loss without"),
        (lambda: nl.WeightedSum([nl.CELoss()], [1, 2]), ValueError, "weights: expected one for each of 1 losses"),
        (lambda: nl.WeightedSum([], []), ValueError, "weights: expected one for each of 0 losses, at least one"),
        (lambda: nl.WeightedSum([nl.CELoss()], [-2]), ValueError, "weights[0]: expected >= 0; got -2"),
        (
            lambda: nl.Normalized(nl.APLLoss()),
            TypeError,
            "loss: expected a pointwise loss such as CELoss(); got APLLoss",
        ),
        (lambda: nl.Normalized(nl.CELoss(label_smoothing=0.1)), ValueError, "loss: expected a loss without options"),
        (lambda: nl.create_loss("nope"), ValueError, "id: expected one of"),
        (lambda: nl.create_loss("nce+nope"), ValueError, "id: expected one of"),
        (lambda: nl.create_loss("nce+mae+rce"), ValueError, "id: expected a sum of two losses; got 'nce+mae+rce'"),
        (lambda: nl.create_loss(nl.CELoss), TypeError, "id: expected a string; got"),
        (
            lambda: nl.create_loss("gce", gamma=1),
            TypeError,
            "gamma: no hyper-parameter of 'gce'; it has q, and the opt",
        ),
        (
            lambda: nl.create_loss("nfl+rce", q=1),
            TypeError,
            "q: no hyper-parameter of 'nfl+rce'; it has alpha, beta, ga",
        ),
        (lambda: nl.AGCELoss(a=0), ValueError, "a: expected a > 0; got 0"),
        (lambda: nl.AGCELoss(q=0), ValueError, "q: expected q > 0; got 0"),
        (lambda: nl.AULLoss(a=1), ValueError, "a: expected a > 1; got 1"),
        (lambda: nl.AULLoss(q=-1), ValueError, "q: expected q > 0; got -1"),
        (lambda: nl.AELLoss(a=-1), ValueError, "a: expected a > 0; got -1"),
        (lambda: nl.AMSELoss(a=0.5), ValueError, "a: expected a >= 1; got 0.5"),
        (lambda: nl.JALLoss(a=0.5), ValueError, "a: expected a >= 1; got 0.5"),
        (lambda: nl.PHuberCELoss(tau=1), ValueError, "tau: expected tau > 1; got 1"),
        (lambda: nl.PHuberGCELoss(q=1), ValueError, "q: expected 0 < q < 1; got 1"),
        (lambda: nl.TaylorCELoss(t=1.5), ValueError, "t: expected an integer t >= 1; got 1.5"),
        (lambda: nl.TaylorCELoss(t=0), ValueError, "t: expected an integer t >= 1; got 0"),
        (lambda: nl.TruncatedGCELoss(k=1), ValueError, "k: expected 0 <= k < 1; got 1"),
        (lambda: nl.JSLoss(pi=1), ValueError, "pi: expected 0 < pi < 1; got 1"),
        (lambda: nl.JSLoss(scaled=1), TypeError, "scaled: expected a bool; got 1"),
        (lambda: nl.NLSLoss(r=1.5), ValueError, "r: expected r <= 1; got 1.5"),
        (lambda: nl.BootstrapLoss(t=1), ValueError, "t: expected 0 <= t < 1; got 1"),
        (lambda: nl.EpsilonSoftmaxLoss(m=-1), ValueError, "m: expected m >= 0; got -1"),
        (lambda: nl.EpsilonSoftmaxLoss(gamma=-1), ValueError, "gamma: expected gamma >= 0; got -1"),
        (lambda: nl.EpsilonSoftmaxLoss(p_min=1), ValueError, "p_min: expected 0 <= p_min < 1; got 1"),
        (
            lambda: nl.NNCELoss(p_min=0),
            ValueError,
            "p_min: expected a finite f(p_min) above f(1); got inf from CELoss",
        ),
        (lambda: nl.NNCELoss(p_min=1), ValueError, "p_min: expected 0 <= p_min < 1; got 1"),
        (lambda: nl.NNCELoss(p_min=0.4)(INPUT, TARGET), ValueError, "p_min: expected less than 1/C with C = 3 cl"),
        (lambda: nl.NormalizedNegative(nl.NCELoss()), TypeError, "loss: expected a pointwise loss such as CELoss(); g"),
        (lambda: nl.Symmetrized(nl.NCELoss()), TypeError, "loss: expected a pointwise loss such as CELoss(); got NCE"),
        (lambda: nl.Symmetrized(nl.CELoss(reduction="sum")), ValueError, "loss: expected a loss without options of it"),
        (lambda: nl.recommended("nope"), ValueError, "id: expected an id, one of ael, agce"),
        (lambda: nl.recommended("mae"), ValueError, "id: expected a loss with published hyper-parameters, one of ael"),
        (
            lambda: nl.recommended("sce", "cifar"),
            ValueError,
            "dataset: expected one of cifar10, cifar100, mnist, web",
        ),
        (lambda: nl.CELoss().bounds(1), ValueError, "num_classes: expected at least 2; got 1"),
        (lambda: nl.CELoss().bounds(2.0), TypeError, "num_classes: expected an int; got 2.0"),
        (lambda: nl.CELoss(weight=torch.ones(3)).bounds(4), ValueError, "num_classes: expected 3, the length of weig"),
        (lambda: nl.CELoss()(INPUT.numpy(), TARGET), TypeError, "input: expected a tensor; got ndarray"),
        (lambda: nl.CELoss()(INPUT, [0, 1, 2, 0]), TypeError, "target: expected a tensor; got list"),
        (
            lambda: nl.CELoss()(INPUT.long(), TARGET),
            TypeError,
            "input: expected floating point logits; got torch.int64",
        ),
        (
            lambda: nl.CELoss()(INPUT, TARGET.float()),
            TypeError,
            "target: expected integers at shape (4,), class indices",
        ),
        (lambda: nl.CELoss()(INPUT, TARGET == 0), TypeError, "class indices; got torch.bool"),
        (lambda: nl.CELoss()(INPUT, INPUT.long()), TypeError, "target: expected floating point class probabilities"),
        (
            lambda: nl.CELoss()(INPUT, TARGET[:3]),
            ValueError,
            "target: expected class indices of shape (4,) or class pr",
        ),
        (lambda: nl.CELoss()(INPUT, TARGET[:, None]), ValueError, "(4, 3) for this input; got shape (4, 1)"),
        (lambda: nl.CELoss()(INPUT[:, :1], TARGET * 0), ValueError, "with C >= 2 classes; got (4, 1)"),
        (lambda: nl.CELoss()(INPUT[0, 0], TARGET), ValueError, "input: expected shape (C), (N, C) or (N, C, d1, ...)"),
        (
            lambda: nl.CELoss(weight=torch.ones(2))(INPUT, TARGET),
            ValueError,
            "weight: expected one entry for each of 3 c",
        ),
        (
            lambda: nl.CELoss(ignore_index=0)(INPUT, INPUT),
            ValueError,
            "ignore_index: expected a negative number with cl",
        ),
        (
            lambda: nl.CELoss()(INPUT, TARGET + 1),
            IndexError,
            "target: expected class indices from 0 to 2, or ignore_index = -100; got 3",
        ),
        (
            lambda: nl.CELoss(ignore_index=1)(INPUT, TARGET - 1),
            IndexError,
            "target: expected class indices from 0 to 2, or ignore_index = 1; got -1",
        ),
    ],
)
def test_message(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


class _Negative(nl.PointwiseLoss):
    def f(self, log_p):
        return torch.exp(log_p) - 1


def test_what_cannot_be_normalised():
    with pytest.raises(ValueError, match=re.escape("loss: expected values >= 0 that fall as p rises; got -1.0 to 0.0")):
        nl.Normalized(_Negative())
