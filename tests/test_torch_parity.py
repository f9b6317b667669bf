"""CELoss is torch.nn.CrossEntropyLoss, in value and gradient, over the product of all options."""

from __future__ import annotations

from unittest import mock

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from noisyloss import CELoss, _log_probs

SHAPES = [(5,), (3, 5), (0, 5), (2, 5, 3), (2, 5, 3, 2), (0, 5, 2), (2, 2)]


@settings(max_examples=400)
@given(
    shape=st.sampled_from(SHAPES),
    weighted=st.booleans(),
    ignore=st.sampled_from(["none", "some", "all", "a class"]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    soft=st.booleans(),
    blockwise=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_torch(shape, weighted, ignore, reduction, smoothing, soft, blockwise, seed):
    generator = torch.Generator().manual_seed(seed)
    c = shape[0] if len(shape) == 1 else shape[1]
    input = 3 * torch.randn(shape, dtype=torch.float64, generator=generator)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = torch.rand(c, dtype=torch.float64, generator=generator) + 0.1
    if soft:
        target = torch.rand(shape, dtype=torch.float64, generator=generator)
    else:
        target = torch.randint(c, shape[1:] if len(shape) == 1 else shape[:1] + shape[2:], generator=generator)
        if ignore == "a class":
            options["ignore_index"] = 1
        elif ignore != "none":
            options["ignore_index"] = -7
            target[torch.rand(target.shape, generator=generator) < {"some": 0.4, "all": 2.0}[ignore]] = -7
    results = []
    for loss in (CELoss(**options), torch.nn.CrossEntropyLoss(**options)):
        leaf = input.clone().requires_grad_()
        with mock.patch.multiple(_log_probs, _BLOCKWISE_FROM=1 if blockwise else 1 << 60, _BLOCK=7):
            value = loss(leaf, target)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        results.append((value, grad))
    (value, grad), (expected, expected_grad) = results
    torch.testing.assert_close(value, expected, equal_nan=True)
    if not (expected.isnan().any() and torch.nan_to_num(expected_grad).eq(0).all()):
        torch.testing.assert_close(grad, expected_grad, equal_nan=True)
    assert torch.isfinite(grad).all()


def test_all_ignored_and_empty_are_nan_as_in_torch():
    input = torch.randn(3, 4)
    for x, y in (
        (input, torch.full((3,), -100)),
        (input[:0], torch.empty(0, dtype=torch.long)),
        (input[:0], input[:0]),
    ):
        assert CELoss()(x, y).isnan()
        assert torch.nn.CrossEntropyLoss()(x, y).isnan()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_every_integer_dtype_holds_class_indices(dtype):
    input, target = torch.randn(4, 5), torch.tensor([0, 4, 2, 1])
    assert torch.equal(CELoss()(input, target.to(dtype)), CELoss()(input, target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32(dtype):
    """The one difference from torch, which returns the input's dtype and its rounding error."""
    input, target = torch.randn(40, 10).to(dtype), torch.arange(40) % 10
    exact = torch.nn.functional.cross_entropy(input.double(), target)
    ours = CELoss()(input, target)
    assert ours.dtype == torch.float32
    assert abs(ours - exact) <= 1e-6
    assert abs(ours - exact) <= abs(torch.nn.functional.cross_entropy(input, target) - exact)


def test_float32_error_is_no_larger_than_torchs():
    torch.manual_seed(0)
    input, target = 5 * torch.randn(257, 123), torch.randint(123, (257,))
    exact = torch.nn.functional.cross_entropy(input.double(), target, reduction="none")
    ours = CELoss(reduction="none")(input, target) - exact
    torchs = torch.nn.functional.cross_entropy(input, target, reduction="none") - exact
    assert ours.abs().max() <= torchs.abs().max() + 1e-7


def test_masked_classes_may_be_minus_infinity():
    input = torch.tensor([[0.0, 1.0, -torch.inf]])
    target = torch.tensor([1])
    assert torch.equal(CELoss()(input, target), torch.nn.functional.cross_entropy(input, target))
