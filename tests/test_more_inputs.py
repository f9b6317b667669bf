"""Losses of several views and of a sample's place, and the regularisers: against numpy, and what they remember."""

from __future__ import annotations

import copy
import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from noisyloss import CELoss, ELRLoss, GJSLoss, entropy_regularizer, l1_penalty

F64 = torch.float64


def draw(generator, *shape):
    return 2 * torch.randn(*shape, dtype=F64, generator=generator)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a)


# Generalised Jensen-Shannon


def gjs(ps, y, pi):
    """The divergence as it is defined, from distributions."""
    e, w = np.eye(len(ps[0]))[y], (1 - pi) / len(ps)
    m = pi * e + w * sum(ps)
    return (pi * kl(e, m) + w * sum(kl(p, m) for p in ps)) / (-(1 - pi) * np.log(1 - pi))


def js(u, pi):
    """The closed form, of the label's probability alone."""
    m = pi + (1 - pi) * u
    value = -pi * np.log(m) + (1 - pi) * ((1 - u) * np.log(1 / (1 - pi)) + u * np.log(u / m))
    return value / (-(1 - pi) * np.log(1 - pi))


@given(seed=st.integers(0, 10**6), c=st.integers(2, 6), v=st.integers(1, 4), pi=st.floats(0.01, 0.99))
def test_gjs_equals_the_formula(seed, c, v, pi):
    z = 2 * np.random.default_rng(seed).standard_normal((v, 3, c))
    y, p = np.arange(3) % c, softmax(z)
    values = GJSLoss(pi, reduction="none")([torch.from_numpy(view) for view in z], torch.from_numpy(y))
    expected = [gjs(p[:, i], y[i], pi) for i in range(3)]
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    low, high = GJSLoss(pi).bounds(c)
    assert ((values >= low - 1e-12) & (values <= high + 1e-9)).all()
    # The Jensen-Shannon loss of the mean prediction, plus the disagreement.
    means = p.mean(0)
    disagreement = [np.mean([kl(p[j, i], means[i]) for j in range(v)]) for i in range(3)]
    split = [js(means[i, y[i]], pi) - disagreement[i] / np.log(1 - pi) for i in range(3)]
    np.testing.assert_allclose(values, split, rtol=1e-9, atol=1e-12)


def test_gjs_bounds_are_attained():
    """With as many views as other classes, each sure of its own; and with one view, 3.43, 2.00 and 1.41."""
    views = list(1e4 * torch.eye(4, dtype=F64)[:3, None])
    for pi in (0.3, 0.9):
        assert GJSLoss(pi)(views, torch.tensor([3])).item() == pytest.approx(GJSLoss(pi).bounds(4)[1])
    assert GJSLoss(0.2).bounds(4)[1] == pytest.approx(-math.log(4) / (0.8 * math.log(0.8)))
    for pi, most in ((0.1, 3.43), (0.5, 2.0), (0.9, 1.41)):
        assert round(GJSLoss(pi)(views[:1], torch.tensor([3])).item(), 1) == pytest.approx(most, abs=0.1)
        assert GJSLoss(pi)([views[3 - 1]] * 2, torch.tensor([2])).item() == pytest.approx(0.0, abs=1e-9)


def test_gjs_tends_to_cross_entropy_as_the_label_loses_weight(generator):
    input, target = draw(generator, 8, 5), torch.arange(8) % 5
    torch.testing.assert_close(GJSLoss(1e-7)([input], target), CELoss()(input, target), rtol=1e-5, atol=0)


def test_gjs_takes_the_options_of_cross_entropy(generator):
    views, index = [draw(generator, 9, 4), draw(generator, 9, 4)], torch.arange(9) % 4
    every = torch.stack([GJSLoss(reduction="none")(views, torch.full((9,), k)) for k in range(4)], 1)
    soft, weight = draw(generator, 9, 4).softmax(1), torch.rand(4, dtype=F64, generator=generator)
    one_hot = torch.nn.functional.one_hot(index, 4).to(F64)
    for target, t in ((index, one_hot), (soft, soft)):
        loss = GJSLoss(reduction="none", weight=weight, label_smoothing=0.2)
        torch.testing.assert_close(loss(views, target), (weight * (0.8 * t + 0.05) * every).sum(1))
    some = index.masked_fill(index == 1, 7)
    torch.testing.assert_close(GJSLoss(ignore_index=7)(views, some), every[range(9), index][index != 1].mean())


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 4, 3), (2, 4, 3, 2), (0, 4)])
def test_gjs_shapes(shape, generator):
    views = [draw(generator, *shape), draw(generator, *shape)]
    index_shape = shape[1:] if len(shape) == 1 else shape[:1] + shape[2:]
    target = torch.randint(4, index_shape, generator=generator)
    values = GJSLoss(reduction="none")(views, target)
    assert values.shape == index_shape
    rows = [(view.unsqueeze(0) if len(shape) == 1 else view.movedim(1, -1)).reshape(-1, 4) for view in views]
    torch.testing.assert_close(values.reshape(-1), GJSLoss(reduction="none")(rows, target.reshape(-1)))


def test_gjs_derivatives_and_compilation(generator):
    views = [draw(generator, 3, 4).requires_grad_(), draw(generator, 3, 4).requires_grad_()]
    index = torch.tensor([2, -100, 0])
    loss = GJSLoss(0.3, weight=torch.rand(4, dtype=F64, generator=generator))
    assert torch.autograd.gradcheck(lambda *views: loss(views, index), views)
    assert torch.autograd.gradgradcheck(lambda *views: loss(views, index), views)
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(views, index)
    torch.testing.assert_close(value, loss(views, index))
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)
        assert torch.equal(twin(views, index), loss(views, index))
    assert "GJSLoss(pi=0.3, weight=[" in repr(loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_are_finite_at_extreme_logits(dtype):
    tops = [0.0, 16.0, 100.0, 1e4] + [1e30] * (dtype != torch.float16)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)
    input = torch.cat([top * signs for top in tops]).to(dtype).requires_grad_()
    index = torch.arange(len(input)) % 3
    elr = ELRLoss(len(input), 3, reduction="none")
    for compute in (
        lambda: GJSLoss(reduction="none")([input, input.flip(0)], index),
        lambda: elr(input, index, torch.arange(len(input))),
    ):
        values = compute()
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert torch.autograd.grad(values.sum(), input)[0].isfinite().all()
    regularizer = entropy_regularizer(input)
    assert torch.autograd.grad(regularizer, input)[0].isfinite().all()
    assert -1e-6 <= regularizer <= math.log(3)


# Early-learning regularisation


def elr_oracle(batches, num_samples, c, beta, lam, low=1e-4):
    """The losses of one batch after the other, as the official code has them."""
    memory, losses = np.zeros((num_samples, c)), []
    for z, y, index in batches:
        p = softmax(z)
        clamped = np.clip(p, low, 1 - low)
        memory[index] = beta * memory[index] + (1 - beta) * clamped / clamped.sum(1, keepdims=True)
        ce = -np.log(p[range(len(y)), y])
        losses.append((ce + lam * np.log(1 - (memory[index] * clamped).sum(1))).mean())
    return losses, memory


def test_elr_equals_the_official_code_over_several_visits():
    rng = np.random.default_rng(0)
    batches = [(4 * rng.standard_normal((3, 5)), rng.integers(5, size=3), rng.permutation(6)[:3]) for _ in range(8)]
    loss = ELRLoss(6, 5, beta=0.7, lam=3.0).double()
    values = [loss(*map(torch.from_numpy, batch)).item() for batch in batches]
    expected, memory = elr_oracle(batches, 6, 5, 0.7, 3.0)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    np.testing.assert_allclose(loss.memory, memory, rtol=1e-12)


def test_elr_gradient_takes_the_memory_as_a_constant(generator):
    input, target, index = (
        draw(generator, 4, 3).requires_grad_(),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([5, 1, 3, 0]),
    )
    loss = ELRLoss(6, 3).double()
    (grad,) = torch.autograd.grad(loss(input, target, index), input)
    p = input.softmax(1)
    t = loss.memory[index]
    (expected,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(input, target) + 3 * (1 - (t * p).sum(1)).log().mean(), input
    )
    torch.testing.assert_close(grad, expected)
    loss.eval()
    assert torch.autograd.gradcheck(lambda z: loss(z, target, index), input)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target, index), input)


def test_elr_remembers_while_training_alone(generator):
    input, target, index = (
        draw(generator, 4, 3).requires_grad_(),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([5, 1, 3, 0]),
    )
    loss = ELRLoss(6, 3)
    loss(input, target, index)
    before = loss.memory.clone()
    assert (before[[5, 1, 3, 0]].sum(1) - 0.3).abs().max() < 1e-6
    assert (before[[2, 4]] == 0).all()
    with torch.no_grad():
        quiet = loss(input, target, index)
    torch.testing.assert_close(loss.eval()(input, target, index), quiet)
    assert torch.equal(loss.memory, before)
    assert not loss.memory.requires_grad
    loss.train()(input, target, index)
    assert not torch.equal(loss.memory, before)


def test_the_memory_is_saved_moved_and_copied(generator):
    input, target, index = draw(generator, 2, 3), torch.tensor([0, 1]), torch.tensor([3, 1])
    loss = ELRLoss(4, 3, weight=torch.ones(3))
    loss(input, target, index)
    assert set(loss.state_dict()) == {"memory", "values.weight"}
    assert not list(loss.parameters())
    other = ELRLoss(4, 3, weight=torch.zeros(3))
    other.load_state_dict(loss.state_dict())
    for twin in (other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin.memory, loss.memory)
        assert torch.equal(twin.eval()(input, target, index), loss.eval()(input, target, index))
    assert loss.to("meta").memory.device.type == "meta"
    assert repr(ELRLoss(4, 3)).startswith("ELRLoss(num_samples=4, num_classes=3, beta=0.7, lam=3.0, p_min=0.0001, wei")


def test_elr_takes_the_options_of_cross_entropy(generator):
    input, index, place = draw(generator, 9, 4), torch.arange(9) % 4, torch.arange(9)
    loss = ELRLoss(9, 4).double()
    loss(input, index, place)
    loss.eval()
    regulariser = 3 * (1 - (loss.memory * input.softmax(1).clamp(1e-4, 1 - 1e-4)).sum(1)).log()
    every = regulariser[:, None] - input.log_softmax(1)
    soft, weight = draw(generator, 9, 4).softmax(1), torch.rand(4, dtype=F64, generator=generator)
    other = ELRLoss(9, 4, reduction="none", weight=weight, label_smoothing=0.2, ignore_index=-1).double().eval()
    other.memory.copy_(loss.memory)
    torch.testing.assert_close(other(input, soft, place), (weight * (0.8 * soft + 0.05) * every).sum(1))
    one_hot = torch.nn.functional.one_hot(index, 4)
    expected = (weight * (0.8 * one_hot + 0.05) * every).sum(1).masked_fill(index == 2, 0.0)
    torch.testing.assert_close(other(input, index.masked_fill(index == 2, -1), place), expected)


def test_elr_bounds_hold():
    low, high = ELRLoss(1, 3).bounds(3)
    assert (low, high) == (3 * math.log(1e-4), math.inf)
    loss = ELRLoss(1, 3, beta=0.0)  # the memory is the prediction
    value = loss(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([0]), torch.tensor([0]))
    assert low <= value
    assert value.item() == pytest.approx(3 * math.log(3e-4), rel=1e-3)  # the other classes are clamped, too


def test_elr_compiles(generator):
    input, target, index = (
        draw(generator, 4, 3).requires_grad_(),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([5, 1, 3, 0]),
    )
    plain, compiled = ELRLoss(6, 3), torch.compile(ELRLoss(6, 3), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        value, expected = compiled(input, target, index), plain(input, target, index)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, input), torch.autograd.grad(expected, input))
    torch.testing.assert_close(compiled.memory, plain.memory)


# Regularisers


def test_l1_penalty(generator):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    expected = sum(np.abs(p.detach().numpy()).sum() for p in model.parameters())
    penalty = l1_penalty(model.parameters())
    assert penalty.item() == pytest.approx(expected)
    penalty.backward()
    assert torch.equal(model[0].weight.grad, model[0].weight.sign())
    assert l1_penalty([torch.ones(5, dtype=torch.float16)]).dtype == torch.float32
    assert l1_penalty(torch.tensor([[1.0, -2.0]])).item() == 3.0


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 4, 3)])
def test_entropy_regularizer(shape, generator):
    input = draw(generator, *shape).requires_grad_()
    rows = input.detach().numpy()
    rows = rows[None] if len(shape) == 1 else np.moveaxis(rows, 1, -1).reshape(-1, 4)
    mean = softmax(rows).mean(0)
    torch.testing.assert_close(entropy_regularizer(input).item(), math.log(4) + (mean * np.log(mean)).sum())
    assert entropy_regularizer(input) > 0
    assert abs(entropy_regularizer(torch.zeros(shape, dtype=F64))) < 1e-12
    assert torch.autograd.gradcheck(entropy_regularizer, input)


INPUT, TARGET, PLACE = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: GJSLoss(pi=1.0), ValueError, "pi: expected 0 < pi < 1; got 1.0"),
        (
            lambda: GJSLoss(logit_bias=1.0),
            TypeError,
            "logit_bias: no option of GJSLoss, which has weight, ignore_index",
        ),
        (lambda: GJSLoss(reduction="avg"), ValueError, "reduction: expected 'none', 'mean' or 'sum'; got 'avg'"),
        (lambda: GJSLoss()(INPUT, TARGET), TypeError, "views: expected a sequence of tensors; got Tensor"),
        (lambda: GJSLoss()([], TARGET), ValueError, "views: expected at least one; got none"),
        (lambda: GJSLoss()([INPUT, 3], TARGET), TypeError, r"views\[1\]: expected a tensor; got int"),
        (lambda: GJSLoss()([INPUT, INPUT[:, :2]], TARGET), ValueError, r"views\[1\]: expected the shape \(4, 3\)"),
        (lambda: GJSLoss().bounds(1), ValueError, "num_classes: expected at least 2; got 1"),
        (lambda: ELRLoss(0, 3), ValueError, "num_samples: expected at least 1; got 0"),
        (lambda: ELRLoss(5, 3.0), TypeError, "num_classes: expected an int; got 3.0"),
        (lambda: ELRLoss(5, 3, beta=1.0), ValueError, "beta: expected 0 <= beta < 1; got 1.0"),
        (lambda: ELRLoss(5, 3, lam=-1), ValueError, "lam: expected lam >= 0; got -1"),
        (lambda: ELRLoss(5, 3, p_min=0), ValueError, "p_min: expected 0 < p_min < 1/2; got 0"),
        (
            lambda: ELRLoss(5, 3)(INPUT[:, :2], TARGET, PLACE),
            ValueError,
            r"input: expected shape \(N, 3\); got \(4, 2\)",
        ),
        (lambda: ELRLoss(5, 3)(INPUT, TARGET, PLACE[:2]), ValueError, r"index: expected shape \(4,\), one for each"),
        (
            lambda: ELRLoss(5, 3)(INPUT, TARGET, PLACE.float()),
            TypeError,
            "index: expected a tensor of integers; got tor",
        ),
        (
            lambda: ELRLoss(5, 3)(INPUT, TARGET, [0, 1, 2, 3]),
            TypeError,
            "index: expected a tensor of integers; got list",
        ),
        (lambda: ELRLoss(2, 3)(INPUT, TARGET, PLACE), (IndexError, RuntimeError), "out of "),
        (lambda: l1_penalty([]), ValueError, "parameters: expected at least one; got none"),
        (lambda: l1_penalty([1.0]), TypeError, "parameters: expected tensors; got float"),
        (lambda: entropy_regularizer([1.0]), TypeError, "input: expected a floating point tensor"),
        (lambda: entropy_regularizer(torch.tensor(1.0)), ValueError, r"input: expected shape \(C\)"),
    ],
)
def test_message(build, error, message):
    with pytest.raises(error, match=message):
        build()
