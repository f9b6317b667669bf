"""What every loss promises, whatever its formula. A new loss is tested here as soon as it is registered."""

from __future__ import annotations

import copy
import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import ALL_PATHS, JUMPS, LINKED, PATHS, SHIFT_VARIANT, take
from hypothesis import assume, given
from hypothesis.extra.numpy import arrays

from noisyloss import APLLoss, Normalized, PointwiseLoss, SparseRegularization, WeightedSum, create_loss
from noisyloss.noise import symmetric_matrix

F64 = torch.float64


@st.composite
def batches(draw, min_classes=2, max_logit=30.0):
    """Logits that vary, with a class index each."""
    n, c = draw(st.integers(1, 4)), draw(st.integers(min_classes, 7))
    logits = draw(arrays(np.float64, (n, c), elements=st.floats(-max_logit, max_logit, width=32)))
    assume(np.ptp(logits, axis=1).max() > 0.01)
    target = draw(arrays(np.int64, n, elements=st.integers(0, c - 1)))
    return torch.from_numpy(logits), torch.from_numpy(target)


@st.composite
def distributions(draw, shape):
    weights = draw(arrays(np.float64, shape, elements=st.floats(0.0, 1.0)))
    weights[:, 0] += 0.01
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


def every_class(loss, input):
    """loss(z, k) for all k, shape (N, C)."""
    n, c = input.shape
    return torch.stack([loss(input, torch.full((n,), k)) for k in range(c)], 1)


@given(batch=batches())
def test_within_bounds(make_loss, batch):
    input, target = batch
    low, high = make_loss().bounds(input.shape[1])
    values = make_loss(reduction="none")(input, target)
    slack = 1e-9 * max(1.0, abs(low), high if math.isfinite(high) else 1.0)
    assert low < high
    assert ((values >= low - slack) & (values <= high + slack)).all()


@given(batch=batches())
def test_within_the_scaled_bounds_of_class_weights_and_label_smoothing(make_loss, batch):
    input, target = batch
    c = input.shape[1]
    loss = make_loss(weight=torch.linspace(0.5, 2, c, dtype=F64), label_smoothing=0.3, reduction="none")
    low, high = loss.bounds(c)
    plain = make_loss().bounds(c)
    assert (low, high) == (min(0.5 * plain[0], 2 * plain[0]), max(0.5 * plain[1], 2 * plain[1]))
    values = loss(input, target)
    assert ((values >= low - 1e-9 * max(1, abs(low))) & (values <= high + 1e-9 * min(high, 1e3))).all()


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_bounds_are_tight(make_loss, num_classes):
    loss = make_loss(reduction="none")
    if isinstance(loss, WeightedSum | SparseRegularization):
        pytest.skip("the bounds of sums are valid, not tight")
    certain = torch.zeros(num_classes, dtype=F64)
    certain[0] = 1e8
    between = torch.zeros(1001, num_classes, dtype=F64)
    between[:, 0] = torch.linspace(-10, 10, 1001)
    centred = certain - certain.mean()  # of all logits of a norm those that are surest of one class
    corners = [certain, -certain, centred, -centred, certain.roll(1), certain.roll(1) - certain]
    values = loss(torch.stack([*corners, *between]), torch.zeros(1007, dtype=torch.long))
    low, high = loss.bounds(num_classes)
    for extreme, bound in ((values.min().item(), low), (values.max().item(), high)):
        if math.isfinite(bound):
            assert extreme == pytest.approx(bound, abs=1e-4)
        else:
            assert extreme * math.copysign(1, bound) > 1e6


@given(batch=batches(min_classes=3, max_logit=5.0))
def test_symmetric_where_it_says_so(make_loss, batch):
    input, _ = batch
    k = make_loss().symmetry_constant(input.shape[1])
    total = every_class(make_loss(reduction="none"), input).sum(1)
    if k is not None:
        torch.testing.assert_close(total, torch.full_like(total, k), rtol=1e-9, atol=1e-9)


def test_symmetric_nowhere_else(make_loss, generator):
    input = torch.randn(100, 5, dtype=F64, generator=generator)
    total = every_class(make_loss(reduction="none"), input).sum(1)
    assert (make_loss().symmetry_constant(5) is None) == (total.std() > 1e-6)


def test_tolerance_is_that_of_symmetric_losses(make_loss):
    symmetric = make_loss().symmetry_constant(10) is not None
    assert make_loss().noise_tolerance(10) == (0.9 if symmetric else 0.0)
    weighted = make_loss(weight=torch.arange(1.0, 11.0))
    assert weighted.symmetry_constant(10) is None
    assert weighted.noise_tolerance(10) == 0.0


@given(batch=batches(min_classes=3, max_logit=5.0), rate=st.floats(0, 1))
def test_noisy_risk_of_a_symmetric_loss_is_affine_in_its_clean_risk(make_loss, batch, rate):
    input, target = batch
    c = input.shape[1]
    if (k := make_loss().symmetry_constant(c)) is None:
        pytest.skip("not symmetric")
    noisy_targets = torch.from_numpy(symmetric_matrix(c, rate))[target]
    noisy_risk = (noisy_targets * every_class(make_loss(reduction="none"), input)).sum(1).mean()
    clean_risk = make_loss()(input, target)
    torch.testing.assert_close(noisy_risk, (1 - rate * c / (c - 1)) * clean_risk + rate * k / (c - 1))


@given(batch=batches(), shift=st.floats(-100, 100))
def test_shifting_the_logits_changes_nothing(make_loss, batch, shift):
    if make_loss.args[0] in SHIFT_VARIANT:
        pytest.skip("a function of the logits, not of their softmax")
    input, target = batch
    if make_loss.args[0] in JUMPS:
        assume(input.topk(2).values.diff().abs().min() > 1e-6)
    torch.testing.assert_close(make_loss()(input + shift, target), make_loss()(input, target), rtol=1e-7, atol=1e-9)


@given(batch=batches(), seed=st.integers(0, 99))
def test_renaming_the_classes_changes_nothing(make_loss, batch, seed):
    input, target = batch
    order = torch.randperm(input.shape[1], generator=torch.Generator().manual_seed(seed))
    renamed = make_loss()(input[:, order], order.argsort()[target])
    torch.testing.assert_close(renamed, make_loss()(input, target))


@given(batch=batches(), smoothing=st.sampled_from([0.0, 0.2, 1.0]))
def test_one_hot_equals_index(make_loss, batch, smoothing):
    input, target = batch
    loss = make_loss(reduction="none", label_smoothing=smoothing, weight=torch.rand(input.shape[1], dtype=F64))
    one_hot = torch.nn.functional.one_hot(target, input.shape[1]).to(F64)
    torch.testing.assert_close(loss(input, one_hot), loss(input, target))


@given(data=st.data(), batch=batches())
def test_soft_targets_give_the_expected_loss(make_loss, data, batch):
    input, _ = batch
    target = data.draw(distributions(tuple(input.shape)))
    loss = make_loss(reduction="none")
    torch.testing.assert_close(loss(input, target), (target * every_class(loss, input)).sum(1))


@given(data=st.data(), batch=batches())
def test_reductions_agree(make_loss, data, batch):
    input, index = batch
    target = data.draw(st.sampled_from([index, data.draw(distributions(tuple(input.shape)))]))
    values = make_loss(reduction="none")(input, target)
    assert values.shape == index.shape
    torch.testing.assert_close(make_loss(reduction="sum")(input, target), values.sum())
    torch.testing.assert_close(make_loss(reduction="mean")(input, target), values.mean())


@given(data=st.data(), batch=batches())
def test_class_weights_multiply(make_loss, data, batch):
    input, target = batch
    weight = torch.from_numpy(data.draw(arrays(np.float64, input.shape[1], elements=st.floats(0.1, 3))))
    plain = make_loss(reduction="none")(input, target)
    torch.testing.assert_close(make_loss(reduction="none", weight=weight)(input, target), weight[target] * plain)
    mean = (weight[target] * plain).sum() / weight[target].sum()
    torch.testing.assert_close(make_loss(weight=weight)(input, target), mean)


@given(batch=batches())
def test_ignored_samples_count_for_nothing(make_loss, batch):
    input, target = batch
    more = torch.cat([input, torch.full_like(input[:1], 7.0)]).requires_grad_()
    loss = make_loss(ignore_index=-1)(more, torch.cat([target, torch.tensor([-1])]))
    torch.testing.assert_close(loss, make_loss()(input, target))
    (grad,) = torch.autograd.grad(loss, more)
    assert (grad[-1] == 0).all()
    assert make_loss(ignore_index=-1, reduction="none")(more, torch.full((len(more),), -1)).eq(0).all()


def test_all_ignored_is_nan_with_zero_gradient(make_loss):
    input = torch.randn(3, 4, requires_grad=True)
    loss = make_loss()(input, torch.full((3,), -100))
    loss.backward()
    assert loss.isnan()
    assert (input.grad == 0).all()


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3), (2, 5, 3, 2), (0, 5), (0, 5, 3)])
def test_shapes(make_loss, shape, generator):
    input = torch.randn(shape, dtype=F64, generator=generator)
    index_shape = shape[1:] if len(shape) == 1 else shape[:1] + shape[2:]
    target = torch.randint(5, index_shape, generator=generator)
    values = make_loss(reduction="none")(input, target)
    assert values.shape == index_shape
    rows = input.unsqueeze(0) if len(shape) == 1 else input.movedim(1, -1)
    flat = make_loss(reduction="none")(rows.reshape(-1, 5), target.reshape(-1))
    torch.testing.assert_close(values.reshape(-1), flat)
    assert make_loss(reduction="none")(input, input.softmax(0 if len(shape) == 1 else 1)).shape == index_shape


def test_gradients_are_those_of_the_value(make_loss, path, generator):
    if "detach_modulator" in make_loss.keywords:
        pytest.skip("a detached factor makes another gradient on purpose")
    input = 3 * torch.randn(3, 4, dtype=F64, generator=generator).requires_grad_()
    index, soft = torch.tensor([2, -100, 0]), torch.rand(3, 4, dtype=F64, generator=generator)
    for options in ({}, {"weight": torch.rand(4, dtype=F64)}, {"label_smoothing": 0.1}):
        loss = make_loss(**options)
        assert torch.autograd.gradcheck(loss, (input, index))
    assert torch.autograd.gradgradcheck(make_loss(), (input, index))
    assert torch.autograd.gradcheck(make_loss(), (input, soft.requires_grad_()))
    assert torch.autograd.gradgradcheck(make_loss(), (input, soft))


@ALL_PATHS
@pytest.mark.parametrize(
    "id", ["mae", "nmae", "nrce", "amse", "mse", "ngce", "nl", "nnce", "nnfl", "bootstrap", "anorm"]
)
def test_a_masked_class_is_one_of_no_probability(id, path):
    input, target = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, 1.0]]), torch.tensor([1, 2])
    found = []
    for logits in (input, input.clamp(min=-1e4)):
        value = create_loss(id)(logits.requires_grad_(), target)
        found.append(torch.cat([value[None], torch.autograd.grad(value, logits)[0].flatten()]))
    assert found[0].isfinite().all()
    assert torch.equal(*found)


LAYOUTS = {
    "contiguous": lambda draw: draw(20, 7),
    "transposed": lambda draw: draw(7, 20).t(),
    "sliced": lambda draw: draw(20, 14)[:, ::2],
    "image": lambda draw: draw(6, 7, 3, 2),
    "channels last": lambda draw: draw(6, 7, 3, 2).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_paths_agree(make_loss, layout, dtype, monkeypatch, generator):
    input = layout(lambda *shape: (4 * torch.randn(*shape, generator=generator)).to(dtype)).requires_grad_()
    target = torch.randint(7, (input.shape[0], *input.shape[2:]), generator=generator)
    grads = []
    monkeypatch.setattr("noisyloss._log_probs._BLOCK", 50)
    for path in PATHS:
        take(path, monkeypatch)
        value = make_loss()(input, target)
        grads.append(torch.stack([value, *torch.autograd.grad(value, input)[0].flatten()]))
    assert grads[0].std() > 0
    for other in grads[1:]:
        torch.testing.assert_close(grads[0], other, **({} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-5}))


@ALL_PATHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_logits(make_loss, dtype, path, generator):
    signs = torch.randint(0, 2, (32, 6), generator=generator) * 2.0 - 1
    spikes = torch.cat([torch.eye(6), -torch.eye(6), torch.zeros(1, 6), torch.ones(1, 6)])
    input = torch.cat([1e4 * signs, 1e4 * spikes, 100 * signs, 16 * spikes, 1e-4 * signs])
    if dtype != torch.float16:  # its largest number is 65504
        input = torch.cat([input, 1e30 * signs, 1e30 * spikes])
    input = input.to(dtype).requires_grad_()
    index = torch.randint(6, (len(input),), generator=generator)
    soft = torch.rand(len(input), 6, generator=generator).softmax(1).to(dtype)
    for target, smoothing in ((index, 0.0), (index, 0.1), (soft, 0.0)):
        values = make_loss(reduction="none", label_smoothing=smoothing)(input, target)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        (grad,) = torch.autograd.grad(values.sum(), input)
        assert grad.dtype == dtype
        assert grad.isfinite().all()


def test_nan_in_nan_out(make_loss):
    input = torch.tensor([[0.0, math.nan, 1.0], [0.0, 1.0, 2.0]])
    values = make_loss(reduction="none")(input, torch.tensor([0, 0]))
    assert values.isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(make_loss, dtype, autocast, generator):
    input = torch.randn(6, 5, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(5, (6,), generator=generator)
    with torch.autocast("cpu", dtype=autocast):
        value = make_loss()(input, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, make_loss()(input, target))
    assert torch.autograd.grad(value, input)[0].isfinite().all()


def test_half_precision_error_is_that_of_the_rounded_input(make_loss, generator):
    input = torch.randn(64, 10, generator=generator).bfloat16()
    target = torch.randint(10, (64,), generator=generator)
    torch.testing.assert_close(make_loss()(input, target), make_loss()(input.float(), target), rtol=0, atol=0)


def test_compiles_without_a_graph_break(make_loss, generator):
    input = torch.randn(6, 5, dtype=F64, generator=generator).requires_grad_()
    target = torch.randint(5, (6,), generator=generator)
    compiled = torch.compile(make_loss(label_smoothing=0.0), fullgraph=True, backend="aot_eager")
    expected = make_loss()(input, target)
    value = compiled(input, target)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, input), torch.autograd.grad(expected, input))


def test_a_sum_whose_derivative_nobody_wrote_compiles(generator):
    class Squared(PointwiseLoss):
        def f(self, log_p):
            return (1 - log_p.exp()) ** 2

    input = torch.randn(6, 5, dtype=F64, generator=generator).requires_grad_()
    target = torch.randint(5, (6,), generator=generator)
    compiled = torch.compile(Normalized(Squared()), fullgraph=True, backend="aot_eager")
    values = [loss(input, target) for loss in (Normalized(Squared()), compiled)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, input) for value in values))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch itself uses it for forward derivatives
@pytest.mark.skipif(torch.__version__ < "2.5", reason="compilers do not trace it yet")
@pytest.mark.parametrize("id", ["gce", "nce", "nfl", "ngce", "nl", "amse", "anl-fl"])
def test_a_compiled_second_derivative_is_the_eager_one(id, generator):
    input, target = torch.randn(3, 4, dtype=F64, generator=generator), torch.tensor([0, 3, 1])
    loss = create_loss(id)
    hessian = torch.func.hessian(lambda input, target: loss(input, target))
    expected = hessian(input, target)  # first, for the first call of all loads what compilers do not trace
    compiled = torch.compile(hessian, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input, target), expected)


@pytest.mark.parametrize("id", ["apl", "nce+rce", "gce", "anl-fl"])
def test_other_batch_sizes_compile_nothing_anew(id, generator):
    loss = APLLoss() if id == "apl" else create_loss(id)
    graphs, seen = [], []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(loss, fullgraph=True, backend=keep)
    for n in (64, 65, 32, 100_000):  # the first for one size, the second for all; the last is one for blocks of rows
        input, target = torch.randn(n, 6, generator=generator), torch.randint(6, (n,), generator=generator)
        compiled(input.requires_grad_(), target).backward()
        seen.append(len(graphs))
    assert seen == [1, 2, 2, 2]


def test_vmap_of_grad_gives_the_gradient_of_every_sample(make_loss, path, generator):
    input = torch.randn(6, 5, dtype=F64, generator=generator)
    target = torch.randint(5, (6,), generator=generator)
    loss = make_loss()
    per_sample = torch.func.vmap(torch.func.grad(loss))(input, target)
    leaf = input.clone().requires_grad_()
    (grad,) = torch.autograd.grad(make_loss(reduction="sum")(leaf, target), leaf)
    torch.testing.assert_close(per_sample, grad)
    one_input = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(input[0], target)
    torch.testing.assert_close(one_input[1], torch.func.grad(loss)(input[0], target[1]))


def test_memory_layout_changes_nothing(make_loss, generator):
    image = torch.randn(2, 5, 3, 4, dtype=F64, generator=generator)
    target = torch.randint(5, (2, 3, 4), generator=generator)
    expected = make_loss()(image, target)
    torch.testing.assert_close(make_loss()(image.to(memory_format=torch.channels_last), target), expected)
    rows = torch.randn(5, 8, dtype=F64, generator=generator).t()
    index = torch.randint(5, (16,), generator=generator)[::2]
    assert not rows.is_contiguous()
    assert not index.is_contiguous()
    torch.testing.assert_close(make_loss()(rows, index), make_loss()(rows.contiguous(), index.contiguous()))


def test_inputs_are_not_modified(make_loss, path, generator):
    input = torch.randn(4, 5, generator=generator).requires_grad_()
    index, soft = torch.tensor([1, -100, 0, 4]), torch.rand(4, 5, generator=generator)
    before = [t.detach().clone() for t in (input, index, soft)]
    for target in (index, soft):
        make_loss(weight=torch.rand(5), label_smoothing=0.1)(input, target).backward()
    make_loss()(input, index).backward()
    assert all(map(torch.equal, (input.detach(), index, soft), before))


def test_keeps_at_most_one_n_by_c_tensor_for_backward(make_loss, path, generator):
    if path == "plain" and make_loss().sums:
        pytest.skip("plain ops keep more; they are for small tensors")
    if make_loss.args[0] in LINKED:
        pytest.skip("a link keeps tensors of its own")
    input = torch.randn(300, 200, generator=generator).requires_grad_()
    target = torch.randint(200, (300,), generator=generator)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        make_loss()(input, target)
    large = [t for t in kept.values() if t.numel() >= input.numel() and t.data_ptr() != input.data_ptr()]
    assert len(large) <= 1


def test_a_kept_graph_gives_its_gradient_again(make_loss, path, generator):
    input = torch.randn(9, 5, generator=generator).requires_grad_()
    loss = make_loss()(input, torch.randint(5, (9,), generator=generator))
    gradients = [torch.autograd.grad(loss, input, retain_graph=again)[0] for again in (True, True, False)]
    assert gradients[0].std() > 0
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"), reason="this torch does not tell"
)
@pytest.mark.parametrize("path", ["blockwise"], indirect=True)
@pytest.mark.parametrize("kept", [False, True])
def test_a_freed_graph_gives_its_memory_to_the_gradient(kept, path, generator):
    input, places = torch.randn(9, 5, generator=generator).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: places.append(t.data_ptr()) or t, lambda t: t):
        loss = create_loss("nce")(input, torch.arange(9) % 5)
    loss.backward(retain_graph=kept)
    assert (input.grad.data_ptr() in places) == (not kept)


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch 2.4 warns of its own unpickling
def test_copies_and_pickles(make_loss, generator):
    loss = make_loss(weight=torch.rand(5, generator=generator), ignore_index=3, reduction="sum", label_smoothing=0.1)
    input, target = torch.randn(4, 5, generator=generator), torch.tensor([0, 1, 3, 4])
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)
        assert torch.equal(twin(input, target), loss(input, target))


def test_weight_is_a_buffer(make_loss):
    loss = make_loss(weight=torch.tensor([1.0, 2.0, 3.0]))
    assert list(loss.state_dict()) == ["weight"]
    assert not list(loss.parameters())
    other = make_loss(weight=torch.ones(3))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.weight, loss.weight)
    assert loss.to("meta").weight.device.type == "meta"
    assert list(make_loss().state_dict()) == []


def test_repr_shows_every_setting(make_loss):
    loss = make_loss(weight=torch.tensor([1.0, 2.0]), ignore_index=7, reduction="sum", label_smoothing=0.25)
    for name, value in loss.hyperparameters.items():
        assert f"{name}={value}" in repr(loss)
    for setting in ("weight=[1.0, 2.0]", "ignore_index=7", "reduction='sum'", "label_smoothing=0.25"):
        assert setting in repr(loss)


def test_hyperparameters_rebuild_the_loss(make_loss):
    assert repr(type(make_loss)(make_loss.func, *make_loss.args, **make_loss().hyperparameters)()) == repr(make_loss())


def test_can_be_a_member(make_loss, generator):
    input, target = torch.randn(6, 5, dtype=F64, generator=generator), torch.arange(6) % 5
    expected = 2 * make_loss()(input, target) + 3 * make_loss()(input, target)
    torch.testing.assert_close(WeightedSum([make_loss(), make_loss()], [2, 3])(input, target), expected)
    torch.testing.assert_close(APLLoss(make_loss(), make_loss(), 2, 3, warmup=False)(input, target), expected)
