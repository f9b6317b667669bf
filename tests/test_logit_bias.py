"""The logit bias: what it is, and what is left of the certificates; and what it has in common with the warm-up."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from conftest import LINKED, take
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from noisyloss import APLLoss, CELoss, GCELoss, MAELoss, NCELoss, WeightedSum, create_loss
from noisyloss._base import PointwiseLoss

F64 = torch.float64
BIASES = (1.5, "auto")
STARTS = ({"logit_bias": 1.5}, {"logit_bias": "auto"}, {"warmup": True})
each_start = pytest.mark.parametrize("start", STARTS, ids=str)


def draw(generator, *shape, dtype=F64):
    return 2 * torch.randn(*shape, dtype=dtype, generator=generator)


@pytest.mark.parametrize("bias", BIASES)
def test_is_added_to_the_logit_of_the_target(make_loss, path, bias, generator):
    shift = math.log(6) if bias == "auto" else bias
    for shape, options in (
        ((20, 7), {}),
        ((20, 7), {"reduction": "none"}),
        ((6, 7, 3, 2), {"weight": torch.rand(7, dtype=F64, generator=generator)}),
        ((7,), {}),
    ):
        input = draw(generator, *shape).requires_grad_()
        target = torch.randint(7, (*shape[:-1][:1], *shape[2:]), generator=generator)
        if target.numel() > 2 and "weight" in options:
            target.view(-1)[0] = -100
        one_hot = torch.nn.functional.one_hot(target.clamp(min=0), 7).to(F64).movedim(-1, min(1, input.dim() - 1))
        ours, plain = make_loss(logit_bias=bias, **options), make_loss(**options)
        value, expected = ours(input, target), plain(input + shift * one_hot, target)
        assert not torch.allclose(value, plain(input, target))
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value.sum(), input), torch.autograd.grad(expected.sum(), input))


@given(seed=st.integers(0, 10**6), bias=st.floats(0.01, 10))
def test_a_biased_pointwise_loss_is_a_function_of_p_alone(make_loss, seed, bias):
    loss = make_loss(logit_bias=bias, reduction="none")
    if not isinstance(loss, PointwiseLoss):
        return
    z = 2 * np.random.default_rng(seed).standard_normal((1, 5))
    p = (np.exp(z) / np.exp(z).sum())[0, 3]
    p = math.exp(bias) * p / (1 + (math.exp(bias) - 1) * p)
    value = loss(torch.from_numpy(z), torch.tensor([3])).item()
    assert value == pytest.approx(loss.at([p])[0], rel=1e-9, abs=1e-12)


def test_under_a_target_distribution_every_class_gets_its_share(make_loss, generator):
    input, target = draw(generator, 9, 4), draw(generator, 9, 4).softmax(1)
    index = target.argmax(1)
    one_hot = torch.nn.functional.one_hot(index, 4).to(F64)
    ours, plain = make_loss(logit_bias=2.0), make_loss()
    torch.testing.assert_close(ours(input, target), plain(input + 2.0 * target, target))
    torch.testing.assert_close(ours(input, one_hot), ours(input, index))
    smooth = 0.9 * one_hot + 0.1 / 4
    ours, plain = make_loss(logit_bias=2.0, label_smoothing=0.1), make_loss(label_smoothing=0.1)
    for hard in (index, one_hot):
        torch.testing.assert_close(ours(input, hard), plain(input + 2.0 * smooth, hard))
    if "detach_modulator" not in make_loss.keywords:
        assert torch.autograd.gradcheck(make_loss(logit_bias=2.0), (input.requires_grad_(), target.requires_grad_()))


@each_start
def test_acts_only_while_training(start, generator):
    input, target = draw(generator, 8, 5), torch.randint(5, (8,), generator=generator)
    loss, plain = APLLoss(**start), APLLoss(warmup=False)(input, target)
    active = loss(input, target)
    assert not torch.isclose(active, plain)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(loss(input, target), plain)
    assert torch.equal(loss.eval()(input, target), plain)
    torch.testing.assert_close(loss.train()(input, target), active)


def test_gradients_of_the_biased_loss(make_loss, path, generator):
    if "detach_modulator" in make_loss.keywords:
        pytest.skip("a detached factor makes another gradient on purpose")
    input, index = draw(generator, 3, 4).requires_grad_(), torch.tensor([2, -100, 0])
    for bias in BIASES:
        assert torch.autograd.gradcheck(make_loss(logit_bias=bias), (input, index))
    assert torch.autograd.gradgradcheck(make_loss(logit_bias=bias), (input, index))


@each_start
@pytest.mark.filterwarnings("ignore:.*amp.autocast:FutureWarning")  # torch 2.4 warns of its own call
def test_checkpointing_changes_nothing(start, generator):
    input, target = draw(generator, 8, 5).requires_grad_(), torch.randint(5, (8,), generator=generator)
    loss = APLLoss(**start)
    (expected,) = torch.autograd.grad(loss(input, target), input)
    (grad,) = torch.autograd.grad(checkpoint(loss, input, target, use_reentrant=False), input)
    checkpoint(loss, input, target, use_reentrant=True).backward()  # its first pass records no gradients
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(input.grad, expected)


@pytest.mark.parametrize("bias", BIASES)
def test_accumulated_gradients_are_those_of_the_batch(bias, generator):
    model = torch.nn.Linear(6, 5, dtype=F64)
    x, y = draw(generator, 8, 6), torch.randint(5, (8,), generator=generator)
    loss = APLLoss(logit_bias=bias)
    loss(model(x), y).backward()
    whole, model.weight.grad = model.weight.grad, None
    for part in (slice(0, 4), slice(4, 8)):
        (loss(model(x[part]), y[part]) / 2).backward()
        with torch.no_grad():  # as loops do between two steps
            loss(model(x[part]), y[part])
    torch.testing.assert_close(model.weight.grad, whole)


def test_a_step_moves_the_target_up(generator):
    """Where the published loss has next to no gradient, at the uniform prediction of many classes."""
    input = torch.zeros(1, 1000, dtype=F64, requires_grad=True)
    slopes = [
        torch.autograd.grad(loss(input, torch.tensor([7])), input)[0][0, 7].abs().item()
        for loss in (create_loss("nce+rce"), create_loss("nce+rce", logit_bias="auto"), CELoss())
    ]
    assert slopes[0] < 0.02
    assert slopes[1] == pytest.approx(9.21034 / 4, rel=1e-2)
    assert slopes[2] == pytest.approx(0.999)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_start
def test_finite_at_extreme_logits(make_loss, start, dtype, path):
    top = 1e4 if dtype == torch.float16 else 1e30
    input = torch.tensor([[top, -top, 0.0], [-top, -top, -top], [0.0, 1.0, top]], dtype=dtype).requires_grad_()
    loss = make_loss(**start, reduction="none")(input, torch.tensor([1, 0, 2]))
    loss.sum().backward()
    bounded = math.isfinite(make_loss().bounds(3)[1])
    assert torch.isfinite(loss).all() or not bounded
    assert torch.isfinite(input.grad).all()


def test_a_huge_bias_is_the_loss_of_certainty(path, generator):
    input, target = draw(generator, 8, 5, dtype=torch.float32).requires_grad_(), torch.arange(8) % 5
    for bias in (100.0, 1e4):  # beside the latter, float32 rounds to a thousandth
        value = create_loss("nce+rce", logit_bias=bias)(input, target)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-5)
        assert torch.isfinite(input.grad).all()


def test_two_classes_need_no_bias(generator):
    input, target = draw(generator, 8, 2), torch.randint(2, (8,), generator=generator)
    ours, plain = APLLoss(logit_bias="auto"), APLLoss(warmup=False)
    assert torch.equal(ours(input, target), plain(input, target))
    assert ours.symmetry_constant(2) == plain.symmetry_constant(2)


# Certificates


@pytest.mark.parametrize("bias", [0.0, 0.5, "auto"])
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20), c=st.integers(2, 8))
def test_certificates_hold(make_loss, bias, seed, scale, c):
    loss = make_loss(logit_bias=bias, reduction="none")
    z = torch.from_numpy(scale * np.random.default_rng(seed).standard_normal((1, c)))
    values = torch.stack([loss(z.requires_grad_(), torch.tensor([k])) for k in range(c)])
    low, high = loss.bounds(c)
    assert ((values >= low - 1e-9) & (values <= high + 1e-9)).all()
    low, high = loss.class_sum_range(c)
    slack = 1e-9 * max(1, abs(values.sum().item()))
    assert low - slack <= values.sum() <= high + slack


@pytest.mark.parametrize("bias", [0.5, "auto"])
def test_a_biased_loss_claims_no_symmetry(bias):
    for loss in (MAELoss(logit_bias=bias), NCELoss(logit_bias=bias), APLLoss(logit_bias=bias)):
        z = torch.tensor([[3.0, 1.0, 0.0, -1.0]], dtype=F64, requires_grad=True)
        sums = [sum(loss(x, torch.tensor([k])) for k in range(4)).item() for x in (z, 0 * z)]
        assert abs(sums[0] - sums[1]) > 1e-3 * sums[0]
        assert loss.symmetry_constant(4) is None
        assert loss.noise_tolerance(4) == 0.0
        low, high = loss.class_sum_range(4)
        assert low - 1e-9 <= min(sums) < max(sums) <= high


def test_class_sum_range_by_hand():
    assert MAELoss().class_sum_range(10) == (9.0, 9.0)
    assert MAELoss(logit_bias="auto").class_sum_range(10) == pytest.approx((5.0, 9.0))  # all at p = 1/2; at a vertex
    assert CELoss().class_sum_range(10) == pytest.approx((10 * math.log(10), math.inf))
    assert GCELoss(0.5).class_sum_range(4) == pytest.approx((4.0, 6.0))  # 4 (1 - 1/2) / (1/2); 3 / (1/2)
    assert WeightedSum([MAELoss(), NCELoss()], [2, 1]).class_sum_range(3) == (5.0, 5.0)
    assert MAELoss(weight=torch.tensor([2.0, 2.0])).class_sum_range(2) == (2.0, 2.0)
    assert MAELoss(weight=torch.tensor([1.0, 2.0])).class_sum_range(2) == (0.0, 4.0)


# Errors and plumbing


@pytest.mark.parametrize(
    ("bias", "error"),
    [(-1, ValueError), (math.inf, ValueError), ("on", ValueError), (None, TypeError), (True, TypeError)],
)
def test_refuses_what_is_no_bias(bias, error):
    with pytest.raises(error, match=r"logit_bias: expected .*; got"):
        APLLoss(logit_bias=bias)


def test_belongs_to_the_whole_loss():
    with pytest.raises(ValueError, match="active: expected a loss without options of its own"):
        APLLoss(active=NCELoss(logit_bias=1.0))


@each_start
def test_keeps_one_n_by_c_tensor(make_loss, start, monkeypatch, generator):
    if make_loss.args[0] in LINKED:
        pytest.skip("a link keeps tensors of its own")
    take("blockwise", monkeypatch)
    input = torch.randn(300, 200, generator=generator).requires_grad_()
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        make_loss(**start)(input, torch.randint(200, (300,), generator=generator))
    assert sum(t.numel() >= input.numel() and t.data_ptr() != input.data_ptr() for t in kept.values()) == 1


@each_start
def test_copies_and_pickles(start, generator):
    loss = APLLoss(**start)
    input, target = draw(generator, 8, 5), torch.randint(5, (8,), generator=generator)
    before = loss(input, target)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), loss):
        torch.testing.assert_close(twin(input, target), before)
        assert all(f"{name}={value!r}" in repr(twin) for name, value in start.items())
    assert ("_warmup.tally" in loss.state_dict()) == ("warmup" in start)


@each_start
def test_compiles_and_maps(start, generator):
    input, target = draw(generator, 8, 5), torch.randint(5, (8,), generator=generator)
    loss = APLLoss(**start)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input, target), loss(input, target))
    batches = torch.stack([input, input.flip(0)])
    mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(batches, target)
    torch.testing.assert_close(mapped[1], torch.func.grad(loss)(batches[1], target))
    assert mapped.std() > 0
