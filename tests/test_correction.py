"""Losses corrected by a transition matrix or by the shares of the classes."""

from __future__ import annotations

import copy
import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from noisyloss import (
    APLLoss,
    BackwardCorrection,
    CELoss,
    CORES2Loss,
    ForwardCorrection,
    GCELoss,
    LogitClip,
    NCELoss,
    PeerLoss,
    WeightedSum,
    create_loss,
)
from noisyloss.noise import CIFAR10_MAPPING, asymmetric_matrix, symmetric_matrix

F64 = torch.float64
SPARSE = torch.tensor(
    [[0.7, 0.3, 0.0, 0.0], [0.0, 0.6, 0.4, 0.0], [0.1, 0.0, 0.9, 0.0], [0.0, 0.2, 0.0, 0.8]], dtype=F64
)
DENSE = torch.from_numpy(symmetric_matrix(4, 0.3))
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)

CE = {"of": lambda p: -np.log(p), "loss": "ce"}
MAE = {"of": lambda p: 1 - p, "loss": "mae"}
NCE = {"of": lambda p: np.log(p) / np.log(p).sum(), "loss": "nce"}

# Each builds the loss, and gives its values for all classes under the probabilities p of one sample.
CASES = {
    f"{name} {base['loss']}": (build, oracle, base)
    for base in (CE, MAE, NCE)
    for name, build, oracle in (
        ("forward", lambda loss, **kw: ForwardCorrection(SPARSE, loss, **kw), lambda of, p: of(SPARSE.numpy().T @ p)),
        (
            "backward",
            lambda loss, **kw: BackwardCorrection(SPARSE, loss, **kw),
            lambda of, p: np.linalg.solve(SPARSE.numpy(), of(p)),
        ),
        (
            "peer",
            lambda loss, **kw: PeerLoss(loss, 0.7, PRIOR, **kw),
            lambda of, p: of(p) - 0.7 * (PRIOR.numpy() @ of(p)),
        ),
        ("uniform peer", lambda loss, **kw: PeerLoss(loss, **kw), lambda of, p: of(p) - of(p).mean()),
    )
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    build, oracle, base = request.param
    return lambda **options: build(base["loss"], **options), lambda p: oracle(base["of"], p)


def draw(generator, *shape):
    return 2 * torch.randn(*shape, dtype=F64, generator=generator)


def test_equals_the_formula(case, generator):
    """As an index, as a distribution, with class weights, smoothing and ignored samples."""
    build, oracle = case
    input, index, soft = draw(generator, 12, 4), torch.arange(12) % 4, draw(generator, 12, 4).softmax(1)
    values = np.stack([oracle(np.exp(z) / np.exp(z).sum()) for z in input.numpy()])
    every = torch.from_numpy(values)
    one_hot = torch.nn.functional.one_hot(index, 4)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64)
    for target, t in ((index, one_hot), (soft, soft)):
        expected = (t * every).sum(1)
        torch.testing.assert_close(build(reduction="none")(input, target), expected)
        weighted = (weight * (0.8 * t + 0.2 / 4) * every).sum(1)
        loss = build(reduction="none", weight=weight, label_smoothing=0.2)
        torch.testing.assert_close(loss(input, target), weighted)
    some = index.masked_fill(index == 2, -100)
    torch.testing.assert_close(build()(input, some), every[range(12), index][index != 2].mean())
    mean = (weight[index] * every[range(12), index]).sum() / weight[index].sum()
    torch.testing.assert_close(build(weight=weight)(input, index), mean)


def test_derivatives(case, generator):
    build, _ = case
    input, index = draw(generator, 3, 4).requires_grad_(), torch.tensor([2, -100, 0])
    soft = draw(generator, 3, 4).softmax(1).requires_grad_()
    for loss, target in ((build(weight=PRIOR, logit_bias=1.5), index), (build(label_smoothing=0.1), soft)):
        assert torch.autograd.gradcheck(loss, (input, target))
        assert torch.autograd.gradgradcheck(loss, (input, target))


def test_a_bias_goes_to_the_logit_first(case, generator):
    build, _ = case
    input, index = draw(generator, 8, 4), torch.arange(8) % 4
    one_hot = torch.nn.functional.one_hot(index, 4).to(F64)
    biased = build()(input + 1.5 * one_hot, index)
    input.requires_grad_()
    torch.testing.assert_close(build(logit_bias=1.5)(input, index), biased)
    torch.testing.assert_close(build(logit_bias=1.5)(input, one_hot), biased)


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 4, 3), (2, 4, 3, 2), (0, 4)])
def test_shapes(case, shape, generator):
    build, _ = case
    input = draw(generator, *shape)
    index_shape = shape[1:] if len(shape) == 1 else shape[:1] + shape[2:]
    target = torch.randint(4, index_shape, generator=generator)
    values = build(reduction="none")(input, target)
    assert values.shape == index_shape
    rows = input.unsqueeze(0) if len(shape) == 1 else input.movedim(1, -1)
    torch.testing.assert_close(values.reshape(-1), build(reduction="none")(rows.reshape(-1, 4), target.reshape(-1)))
    assert build(reduction="none")(input, input.softmax(0 if len(shape) == 1 else 1)).shape == index_shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_logits(case, dtype):
    build, _ = case
    tops = [0.0, 16.0, 100.0, 1e4] + [1e30] * (dtype != torch.float16)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4)
    input = torch.cat([top * signs for top in tops]).to(dtype).requires_grad_()
    index = torch.arange(len(input)) % 4
    for target in (index, torch.nn.functional.one_hot(index, 4).to(dtype)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = build(reduction="none")(input, target)
        assert values.dtype == torch.float32
        assert torch.equal(values, build(reduction="none")(input, target))
        assert values.isfinite().all()
        assert torch.autograd.grad(values.sum(), input)[0].isfinite().all()


def test_compiles_maps_copies_and_keeps_its_state(case, generator):
    build, _ = case
    input, index = draw(generator, 6, 4).requires_grad_(), torch.arange(6) % 4
    loss = build(weight=PRIOR)
    expected = loss(input, index)
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(input, index)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, input), torch.autograd.grad(expected, input))
    plain = build()
    mapped = torch.func.vmap(torch.func.grad(plain))(input.detach(), index)
    torch.testing.assert_close(mapped[1], torch.func.grad(plain)(input[1].detach(), index[1]))
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)
        assert torch.equal(twin(input, index), expected)
    twin = copy.deepcopy(loss)
    for buffer in twin.buffers():
        buffer.zero_()
    twin.load_state_dict(loss.state_dict())
    assert torch.equal(twin(input, index), expected)
    assert loss.float().to("meta").weight.device.type == "meta"


def test_can_be_a_member(case, generator):
    build, _ = case
    input, index = draw(generator, 6, 4), torch.arange(6) % 4
    whole = WeightedSum([build(), CELoss(), LogitClip(build(), 2.0)], [2, 3, 0])
    torch.testing.assert_close(whole(input, index), 2 * build()(input, index) + 3 * CELoss()(input, index))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20), bias=st.sampled_from([0.0, 1.0]))
def test_certificates_hold(case, seed, scale, bias):
    build, _, base = case
    loss = build(base["loss"], logit_bias=bias)
    input = torch.from_numpy(scale * np.random.default_rng(seed).standard_normal((1, 4))).requires_grad_()
    values = torch.stack([loss(input, torch.tensor([k])) for k in range(4)]).detach()
    (low, high), (least, most) = loss.bounds(4), loss.class_sum_range(4)
    assert low - 1e-9 <= values.min()
    assert values.max() <= high + 1e-9
    slack = 1e-9 * max(1, values.abs().max().item())
    assert least - slack <= values.sum() <= most + slack
    constant = loss.symmetry_constant(4)
    assert constant is None or abs(values.sum().item() - constant) <= slack


# Identities


@pytest.mark.parametrize("id", ["ce", "mae", "nce+rce", "ldr"])
def test_the_identity_matrix_corrects_nothing(id, generator):
    input, soft = draw(generator, 8, 5), draw(generator, 8, 5).softmax(1)
    for target in (torch.arange(8) % 5, soft):
        torch.testing.assert_close(BackwardCorrection(np.eye(5), id)(input, target), create_loss(id)(input, target))
        if id != "ldr":  # a function of the logits, which the forward correction replaces
            torch.testing.assert_close(ForwardCorrection(np.eye(5), id)(input, target), create_loss(id)(input, target))


@pytest.mark.parametrize("id", ["ce", "gce", "nce+mae"])
def test_the_expectation_of_the_backward_loss_over_noisy_labels_is_the_clean_loss(id, generator):
    input, clean = draw(generator, 12, 4), torch.arange(12) % 4
    loss = BackwardCorrection(SPARSE, id)
    expected = create_loss(id)(input, clean)
    torch.testing.assert_close(loss(input, SPARSE[clean]), expected)
    per_class = torch.stack([loss(input[:1], torch.tensor([k])) for k in range(4)])
    torch.testing.assert_close((SPARSE[0] * per_class).sum(), create_loss(id)(input[:1], clean[:1]))


def test_forward_correction_is_least_at_the_clean_probabilities(generator):
    clean = draw(generator, 1, 4).softmax(1)
    input = clean.log().requires_grad_()
    (grad,) = torch.autograd.grad(ForwardCorrection(SPARSE)(input, clean @ SPARSE), input)
    torch.testing.assert_close(grad, torch.zeros_like(grad))


def test_peer_loss_is_the_expectation_over_independent_pairs(generator):
    """The paper's term over all pairs of a sample's prediction and another's label."""
    input, noisy = draw(generator, 20, 4), torch.randint(4, (20,), generator=generator)
    prior = torch.bincount(noisy, minlength=4) / 20
    pairs = [GCELoss()(input, torch.full_like(noisy, y)) for y in noisy]
    expected = GCELoss()(input, noisy) - 0.5 * torch.stack(pairs).mean()
    torch.testing.assert_close(PeerLoss("gce", 0.5, prior.double())(input, noisy), expected)


def test_cores2_is_the_published_regulariser(generator):
    input, noisy = draw(generator, 20, 4), torch.randint(4, (20,), generator=generator)
    log_p = input.log_softmax(1)
    expected = (-log_p[range(20), noisy] + 2.0 * (PRIOR * log_p).sum(1)).mean()
    criterion = CORES2Loss(prior=PRIOR)
    torch.testing.assert_close(criterion(input, noisy), expected)
    criterion.beta = 0.0
    torch.testing.assert_close(criterion(input, noisy), CELoss()(input, noisy))
    assert repr(criterion).startswith("CORES2Loss(beta=0.0, prior=[0.4")


# Certificates by hand


def test_bounds_by_hand():
    low, high = ForwardCorrection(DENSE).bounds(4)
    assert (low, high) == pytest.approx((-math.log(0.7), -math.log(0.1)))
    assert ForwardCorrection(SPARSE).bounds(4) == pytest.approx((-math.log(0.9), math.inf))
    assert ForwardCorrection(DENSE, "nce").bounds(4) == (0.0, 1.0)
    assert BackwardCorrection(DENSE).bounds(4) == (-math.inf, math.inf)
    assert BackwardCorrection(np.eye(4)).bounds(4) == (0.0, math.inf)
    # The inverse has 1 + 3a on the diagonal and -a beside it, with a = 1/6.
    assert BackwardCorrection(DENSE, "mae").bounds(4) == pytest.approx((-0.5, 1.5))
    assert PeerLoss("mae", 1.0).bounds(4) == pytest.approx((-0.75, 0.75))


def test_symmetry_by_hand():
    assert ForwardCorrection(SPARSE, "mae").symmetry_constant(4) == 3.0
    assert BackwardCorrection(DENSE, "mae").symmetry_constant(4) == pytest.approx(3.0)
    assert BackwardCorrection(SPARSE, "mae").symmetry_constant(4) is None
    assert BackwardCorrection(DENSE, "ce").symmetry_constant(4) is None
    assert PeerLoss("mae", 0.5).symmetry_constant(4) == pytest.approx(1.5)
    assert PeerLoss("ce", 1.0).symmetry_constant(4) == 0.0  # and so robust to symmetric noise
    assert PeerLoss("ce", 1.0).noise_tolerance(10) == 0.9
    assert PeerLoss("ce", 1.0, PRIOR).symmetry_constant(4) is None
    assert CORES2Loss(1.0).symmetry_constant(4) == 0.0


def test_a_matrix_keeps_its_dtype():
    assert ForwardCorrection(DENSE).matrix.dtype == F64
    assert ForwardCorrection(DENSE.numpy()).matrix.dtype == torch.float32
    assert BackwardCorrection(DENSE.tolist()).inverse.dtype == torch.float32
    assert sorted(BackwardCorrection(DENSE).state_dict()) == ["inverse", "matrix"]


def test_large_classes_with_an_index_take_little_memory(generator):
    """A pointwise loss of class indices needs one column of the matrix for each sample, not all."""
    c = 1000
    matrix = torch.from_numpy(symmetric_matrix(c, 0.4)).float()
    input = torch.randn(8, c, generator=generator).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ForwardCorrection(matrix)(input, torch.arange(8))
    assert max(kept) <= 8 * c


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ForwardCorrection([[0.5, 0.5]]), ValueError, "matrix must be square"),
        (lambda: ForwardCorrection([[0.5, 0.4], [0.0, 1.0]]), ValueError, "matrix must be row-stochastic"),
        (lambda: ForwardCorrection([[1.0, 0.0], [1.0, 0.0]]), ValueError, "matrix: .* got column 1 with zeros alone"),
        (lambda: ForwardCorrection("T"), TypeError, "matrix must hold real numbers"),
        (lambda: ForwardCorrection(np.eye(3), "nope"), ValueError, "loss: expected one of .*; got 'nope'"),
        (lambda: ForwardCorrection(np.eye(3), APLLoss()), ValueError, "loss: expected a loss without options"),
        (lambda: BackwardCorrection(symmetric_matrix(4, 0.75)), ValueError, "matrix: .*; got a condition number of"),
        (lambda: BackwardCorrection(symmetric_matrix(4, 0.75 - 1e-8)), ValueError, "matrix: expected one with an inv"),
        (lambda: BackwardCorrection(np.eye(3), 3), TypeError, "loss: expected a loss of this package; got 3"),
        (lambda: PeerLoss(alpha=-1), ValueError, "alpha: expected alpha >= 0; got -1"),
        (lambda: PeerLoss(prior=[0.5, 0.6]), ValueError, "prior: expected shares .* that sum to 1"),
        (lambda: PeerLoss(prior=[[0.5, 0.5]]), ValueError, r"prior: expected shape \(C\); got \(1, 2\)"),
        (lambda: PeerLoss(prior=["a", "b"]), TypeError, "prior: expected real numbers"),
        (lambda: CORES2Loss(beta=-1), ValueError, "beta: expected beta >= 0; got -1"),
        (lambda: ForwardCorrection(np.eye(3)).bounds(4), ValueError, "num_classes: expected 3, the classes of matrix"),
        (
            lambda: ForwardCorrection(np.eye(3))(torch.zeros(2, 4), torch.tensor([0, 1])),
            ValueError,
            "input: expected 3 classes, as matrix has; got 4",
        ),
        (
            lambda: PeerLoss(prior=PRIOR)(torch.zeros(2, 3), torch.tensor([0, 1])),
            ValueError,
            "input: expected 4 classes, as prior has; got 3",
        ),
    ],
)
def test_message(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_asymmetric_noise_with_clean_classes_is_corrected(generator):
    """The matrices of the benchmarks have zeros, and classes that stay clean."""
    matrix = asymmetric_matrix(10, 0.4, CIFAR10_MAPPING)
    input = 1e4 * torch.randn(20, 10, generator=generator)
    for loss in (ForwardCorrection(matrix), ForwardCorrection(matrix, NCELoss()), BackwardCorrection(matrix)):
        assert loss(input, torch.arange(20) % 10).isfinite()
