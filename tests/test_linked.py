"""Losses of transformed logits: what the link does, that it works in front of any loss, and what is proved of it."""

from __future__ import annotations

import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from noisyloss import (
    APLLoss,
    BiTemperedLoss,
    CELoss,
    LDRLoss,
    LogitClip,
    MAELoss,
    NCELoss,
    SparseRegularization,
    WeightedSum,
    clip_logits,
    create_loss,
    list_losses,
)
from noisyloss.losses.linked import _probability_range, _TemperedLogSoftmax

F64 = torch.float64


def draw(generator, *shape, dtype=F64):
    return 3 * torch.randn(*shape, dtype=dtype, generator=generator)


def normalised(input):
    return input / input.norm(dim=1, keepdim=True)


# Clipping


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), tau=st.floats(0.01, 100))
def test_clipped_logits_have_the_smaller_norm_and_their_own_direction(seed, scale, tau):
    z = scale * np.random.default_rng(seed).standard_normal((5, 4))
    expected = z * np.minimum(1, tau / np.sqrt((z**2).sum(1, keepdims=True)))
    np.testing.assert_allclose(clip_logits(torch.from_numpy(z), tau).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clipping_survives_all_finite_logits(dtype):
    tops = [0.0, 1e-30, 1.0, 1e4] + [1e30] * (dtype != torch.float16)
    input = torch.tensor([[top, -top, 0.0] for top in tops], dtype=dtype).requires_grad_()
    clipped = clip_logits(input, 1.0)
    assert clipped.dtype == torch.float32
    assert (clipped.norm(dim=1)[2:] - 1).abs().max() < 1e-6
    clipped[:, 0].sum().backward()
    assert input.grad.isfinite().all()
    assert input.grad[0].tolist() == [1.0, 0.0, 0.0]  # nothing happens at zero


def test_clipping_works_along_the_class_axis(generator):
    image = draw(generator, 2, 5, 3, 4)
    rows = image.movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(clip_logits(image, 2.0).movedim(1, -1).reshape(-1, 5), clip_logits(rows, 2.0))
    torch.testing.assert_close(clip_logits(rows[0], 2.0), clip_logits(rows, 2.0)[0])
    short = 0.1 * normalised(rows)
    assert torch.equal(clip_logits(short, 2.0), short)


def test_clipping_has_two_derivatives(generator):
    input = draw(generator, 4, 3)
    input[0] *= 0.01  # not clipped
    input.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: clip_logits(z, 1.0), input)
    assert torch.autograd.gradgradcheck(lambda z: clip_logits(z, 1.0), input)


# In front of any loss


@pytest.mark.parametrize("id", [*list_losses(), "mae+ldr"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_wrapper_is_the_loss_of_transformed_logits(id, soft, generator):
    input, target = draw(generator, 8, 5), torch.randint(5, (8,), generator=generator)
    target = draw(generator, 8, 5).softmax(1) if soft else target
    for loss in (id, create_loss(id), WeightedSum([create_loss(id)], [1.0])):
        for options in ({}, {"reduction": "none", "weight": torch.rand(5, dtype=F64), "label_smoothing": 0.1}):
            plain = create_loss(id, **options)
            clipped = LogitClip(loss, 2.0, **options)(input, target)
            torch.testing.assert_close(clipped, plain(clip_logits(input, 2.0), target))
            sparse = SparseRegularization(loss, 0.5, 0.1, 0.0, **options)(input, target)
            torch.testing.assert_close(sparse, plain(normalised(input) / 0.5, target))


@pytest.mark.parametrize("id", list_losses())
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20), c=st.integers(2, 8))
def test_certificates_of_wrappers_hold(id, seed, scale, c):
    input = torch.from_numpy(scale * np.random.default_rng(seed).standard_normal((1, c))).requires_grad_()
    for wrapper in (LogitClip(id, 2.0), SparseRegularization(id), SparseRegularization(id, lam=0.0)):
        for bias in (0.0, 1.5):
            wrapper.logit_bias = bias
            values = torch.stack([wrapper(input, torch.tensor([k])) for k in range(c)]).detach()
            (low, high), (least, most) = wrapper.bounds(c), wrapper.class_sum_range(c)
            assert low - 1e-9 <= values.min()
            assert values.max() <= high + 1e-9
            assert least - 1e-9 * max(1, abs(least)) <= values.sum() <= most + 1e-9 * max(1, abs(most))
            constant = wrapper.symmetry_constant(c)
            assert constant is None or values.sum().item() == pytest.approx(constant)


def test_symmetry_is_inherited():
    for id in ("mae", "nce", "nce+rce"):
        assert LogitClip(id).symmetry_constant(10) == create_loss(id).symmetry_constant(10)
        assert SparseRegularization(id).symmetry_constant(10) is None
    assert SparseRegularization("mae", lam=0.0).noise_tolerance(10) == 0.9
    assert SparseRegularization("mae", p=1.0, lam=2.0).symmetry_constant(10) == 9.0 + 20.0
    assert LogitClip("ce").symmetry_constant(10) is None


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("norm", [0.1, 2.0, 10.0])
def test_the_range_of_probabilities_under_a_norm_is_right_and_attained(num_classes, norm):
    """By ascent from many starts: z becomes the norm times the direction of the gradient, as the odds are convex."""
    low, high = _probability_range(num_classes, norm)
    z = normalised(torch.randn(400, num_classes, dtype=F64, generator=torch.Generator().manual_seed(0)))
    z[:num_classes] += 2 * torch.eye(num_classes, dtype=F64)[: len(z)]
    z = (norm * normalised(z)).requires_grad_()
    for _ in range(300):
        (grad,) = torch.autograd.grad(-z.log_softmax(1)[:, 0].sum(), z)
        z = (norm * normalised(grad)).detach().requires_grad_()
    assert z.softmax(1)[:, 0].min().item() == pytest.approx(low, rel=1e-6)
    assert (z.softmax(1)[:, 0] >= low * (1 - 1e-9)).all()
    sure = torch.eye(1, num_classes, dtype=F64) - 1 / num_classes
    assert (norm * normalised(sure)).softmax(1)[0, 0].item() == pytest.approx(high)


def test_clipped_bounds_by_hand():
    """The largest probability is that of logits along e_y - 1/C."""
    low, high = LogitClip(tau=2.0).bounds(10)
    assert low == pytest.approx(math.log1p(9 * math.exp(-2 * math.sqrt(10 / 9))))
    assert high <= math.log1p(9 * math.exp(2 * math.sqrt(2)))
    assert (round(low, 2), round(high, 2)) == (0.74, 4.32)
    both = LogitClip(WeightedSum([CELoss(), MAELoss()], [1, 2]), tau=2.0).bounds(2)
    assert both[1] == pytest.approx(math.log1p(math.exp(2 * 2**0.5)) + 2 / (1 + math.exp(-2 * 2**0.5)))
    assert SparseRegularization(lam=0.0).bounds(10) == LogitClip(tau=2.0).bounds(10)


def test_sparse_regularisation_on_cifar_bounds_probabilities():
    assert _probability_range(10, 2.0)[1] == pytest.approx(0.478, abs=1e-3)
    assert _probability_range(100, 2.0)[1] == pytest.approx(0.070, abs=1e-3)


def test_lam_may_grow(generator):
    input, target = draw(generator, 8, 5), torch.randint(5, (8,), generator=generator)
    criterion = SparseRegularization(lam=0.0)
    start = criterion(input, target)
    criterion.lam = 2.0
    penalty = ((normalised(input) / 0.5).softmax(1) ** 0.1).sum(1).mean()
    torch.testing.assert_close(criterion(input, target), start + 2 * penalty)


def test_wrappers_nest_compile_and_pickle(generator):
    input, target = draw(generator, 8, 5).requires_grad_(), torch.randint(5, (8,), generator=generator)
    members = [LogitClip(LDRLoss(), 2.0), SparseRegularization(LogitClip("nce", 0.5)), BiTemperedLoss(), NCELoss()]
    loss = LogitClip(WeightedSum(members, [1, 2, 3, 4]), 5.0, logit_bias=0.5, weight=torch.rand(5, dtype=F64))
    expected = loss(input, target)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value = compiled(input, target)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, input), torch.autograd.grad(expected, input))
    assert torch.autograd.gradcheck(loss, (input, target))
    assert torch.autograd.gradgradcheck(loss, (input, target))
    assert torch.equal(pickle.loads(pickle.dumps(loss))(input, target), expected)
    assert list(loss.state_dict()) == ["weight"]
    assert "LogitClip(loss=WeightedSum(losses=[LogitClip(loss=LDRLoss(lam=10.0, margin=0.1), tau=2.0)" in repr(loss)


# Identities


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (BiTemperedLoss(1.0, 1.0), CELoss()),
        (BiTemperedLoss(1.0, 1.0 + 1e-9), CELoss()),
        (LogitClip(tau=1e30), CELoss()),
        (LogitClip("nce+rce", tau=1e30), create_loss("nce+rce")),
        (
            WeightedSum([LogitClip(MAELoss(), tau=1e30), CELoss()], [2, 3]),
            WeightedSum([MAELoss(), CELoss()], [2, 3]),
        ),
    ],
    ids=repr,
)
def test_identities(ours, other, generator):
    input, target = draw(generator, 30, 6), torch.randint(6, (30,), generator=generator)
    ours.reduction = other.reduction = "none"
    torch.testing.assert_close(ours(input, target), other(input, target), rtol=1e-7, atol=1e-8)


def test_ldr_is_a_cross_entropy_of_scores(generator):
    input, target = draw(generator, 30, 6), torch.randint(6, (30,), generator=generator)
    scores = torch.nn.functional.softplus(input)
    scores = scores / scores.mean(1, keepdim=True)
    for margin in (0.0, 0.7):
        shifted = (scores - margin * torch.nn.functional.one_hot(target, 6)) / 2.0
        expected = 2.0 * (torch.nn.functional.cross_entropy(shifted, target) - math.log(6))
        torch.testing.assert_close(LDRLoss(2.0, margin)(input, target), expected)


def test_ldr_scores_stay_apart_where_softplus_underflows():
    """softplus(z) is exp(z) there, so the scores are C times the softmax."""
    input = torch.tensor([[-1e4, -1e4 + 1, -1e4 - 1]], dtype=torch.float32).requires_grad_()
    s = 3 * torch.tensor([[0.0, 1.0, -1.0]]).softmax(1)
    loss = LDRLoss(1.0, 0.0)(input, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(s, torch.tensor([0])) - math.log(3))
    loss.backward()
    assert (input.grad != 0).all()


def test_ldr_bounds_by_hand():
    """About [-8.3, 1.7] with ten classes."""
    low, high = LDRLoss().bounds(10)
    assert low == pytest.approx(10 * math.log((1 + 9 * math.exp(-0.99)) / 10))
    assert high == pytest.approx(10 * math.log((1 + 8 * math.exp(0.01) + math.exp(1.01)) / 10))
    z = torch.full((10,), -1e4, dtype=F64)
    z[0] = 1e4
    assert LDRLoss()(z, torch.tensor(0)).item() == pytest.approx(low)
    assert LDRLoss()(z, torch.tensor(1)).item() == pytest.approx(high)
    assert sum(LDRLoss()(z, torch.tensor(k)).item() for k in range(10)) == pytest.approx(
        LDRLoss().class_sum_range(10)[1]
    )
    equal = sum(LDRLoss()(0 * z, torch.tensor(k)).item() for k in range(10))
    assert equal == pytest.approx(LDRLoss().class_sum_range(10)[0])


@pytest.mark.parametrize("t2", [1.05, 1.2, 2.0, 4.0])
def test_tempered_probabilities_sum_to_one(t2, generator):
    """The official five fixed-point steps leave up to 0.03, and 0.15 at t2 = 1.4 with 1000 classes."""
    steps = BiTemperedLoss().num_iters
    for c in (2, 10, 100, 1000, 20000):
        for scale in (0.1, 1.0, 10.0, 1e4):
            spikes = scale * torch.eye(2, c, dtype=F64)
            input = torch.cat([scale * torch.randn(5, c, dtype=F64, generator=generator), spikes, -spikes])
            total = _TemperedLogSoftmax.apply(input, t2, steps).exp().sum(1)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-11)


def test_the_gradient_of_the_bitempered_loss_is_the_published_one(generator):
    """The official code: delta = (p - y) p^(t2 - t1), grad = delta - escort * sum(delta)."""
    t1, t2 = 0.7, 1.4
    input, target = draw(generator, 6, 5).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])
    (grad,) = torch.autograd.grad(BiTemperedLoss(t1, t2, reduction="sum")(input, target), input)
    p = _TemperedLogSoftmax.apply(input, t2, 30).exp()
    delta = (p - torch.nn.functional.one_hot(target, 5)) * p ** (t2 - t1)
    escort = p**t2 / (p**t2).sum(1, keepdim=True)
    torch.testing.assert_close(grad, (delta - escort * delta.sum(1, keepdim=True)).detach())


def test_the_expected_bitempered_loss_is_the_divergence_up_to_what_depends_on_the_target(generator):
    t1 = 0.6
    input, q = draw(generator, 6, 5), draw(generator, 6, 5).softmax(1)
    p = _TemperedLogSoftmax.apply(input, 1.3, 30).exp()

    def log_t1(x):
        return (x ** (1 - t1) - 1) / (1 - t1)

    divergence = (q * (log_t1(q) - log_t1(p)) - (q ** (2 - t1) - p ** (2 - t1)) / (2 - t1)).sum(1)
    constant = (q * log_t1(q)).sum(1) + (1 - (q ** (2 - t1)).sum(1)) / (2 - t1)
    loss = BiTemperedLoss(t1, 1.3, reduction="none")(input, q)
    torch.testing.assert_close(loss, divergence - constant)


def test_bitempered_bounds_are_attained():
    input = torch.tensor([1e9, 0.0, 0.0, 0.0], dtype=F64)
    for t1, t2 in ((0.8, 1.2), (0.0, 1.0), (0.5, 1.5)):
        loss = BiTemperedLoss(t1, t2)
        values = [loss(input, torch.tensor(k)).item() for k in range(4)]
        assert (values[0], values[1]) == pytest.approx(loss.bounds(4), abs=1e-6)
        assert sum(values) == pytest.approx(loss.class_sum_range(4)[1], abs=1e-5)
        equal = sum(loss(0 * input, torch.tensor(k)).item() for k in range(4))
        assert equal == pytest.approx(loss.class_sum_range(4)[0])
    assert BiTemperedLoss(1.0).bounds(4) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: LogitClip(tau=0), ValueError, "tau: expected tau > 0; got 0"),
        (lambda: LogitClip("nope"), ValueError, "loss: expected one of .*; got 'nope'"),
        (lambda: LogitClip("nce+nope"), ValueError, "loss: expected one of .*; got 'nope'"),
        (lambda: LogitClip(torch.nn.CrossEntropyLoss()), TypeError, "loss: expected a loss of this package"),
        (lambda: LogitClip(APLLoss()), ValueError, "loss: expected a loss without options of its own"),
        (lambda: clip_logits(torch.zeros(2, 3), -1.0), ValueError, "tau: expected tau > 0; got -1.0"),
        (lambda: clip_logits(torch.tensor([1, 2]), 1.0), TypeError, "input: expected a floating point tensor"),
        (lambda: clip_logits(torch.tensor(1.0), 1.0), ValueError, r"input: expected shape \(C\), \(N, C\)"),
        (lambda: SparseRegularization(p=0.0), ValueError, "p: expected 0 < p <= 1; got 0.0"),
        (lambda: SparseRegularization(p=1.5), ValueError, "p: expected 0 < p <= 1; got 1.5"),
        (lambda: SparseRegularization(lam=-1), ValueError, "lam: expected lam >= 0; got -1"),
        (lambda: LDRLoss(lam=0), ValueError, "lam: expected lam > 0; got 0"),
        (lambda: LDRLoss(margin=-1), ValueError, "margin: expected margin >= 0; got -1"),
        (lambda: BiTemperedLoss(t1=1.2), ValueError, "t1: expected 0 <= t1 <= 1; got 1.2"),
        (lambda: BiTemperedLoss(t2=0.9), ValueError, "t2: expected t2 >= 1; got 0.9"),
        (lambda: BiTemperedLoss(num_iters=0), ValueError, "num_iters: expected num_iters >= 1; got 0"),
        (lambda: BiTemperedLoss(num_iters=2.0), TypeError, "num_iters: expected an int; got 2.0"),
    ],
)
def test_message(build, error, message):
    with pytest.raises(error, match=message):
        build()
