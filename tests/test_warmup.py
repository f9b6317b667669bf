"""The warm-up: cross entropy where the network knows nothing, the loss where it does, and what goes in between."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisyloss import APLLoss, CELoss, GCELoss, MAELoss, NCELoss, create_loss
from noisyloss._log_probs import spread
from noisyloss.noise import corrupt, symmetric_matrix

F64 = torch.float64


def draw(generator, *shape, dtype=F64):
    return 2 * torch.randn(*shape, dtype=dtype, generator=generator)


def share(input, target):
    """Return the share of cross entropy in the loss of every sample, read off MAE, of which it is linear."""
    losses = (MAELoss(warmup=True, reduction="none"), CELoss(reduction="none"), MAELoss(reduction="none"))
    value, ce, mae = (loss(input, target).detach() for loss in losses)
    return (value - mae) / (ce - mae)


def informed(p):
    """Return i by numpy: what each prediction says of its sample."""
    return np.minimum((p * np.log(p / p.mean(0))).sum(1) / math.log(min(p.shape)), 1)


def entropy(p):
    return -sum(x * math.log(x) for x in p if x)


def seen_by_numpy(p, targets):
    """Return what is remembered of a batch, from the probabilities and the targets, as distributions."""
    i, p_y = informed(p), (p * targets).sum(1)
    unlikely = (targets * (np.log(p) < np.log(p).mean(1, keepdims=True))).sum(1)
    means = [np.mean(x) for x in (p_y, 1 - p_y, i**2, i**2 * unlikely, i**8, i**8 * (1 - p_y))]
    return np.array([*means, entropy(p.mean(0)), entropy(targets.mean(0)), p.mean(0) @ targets.mean(0)])


def share_by_numpy(p, seen):
    """Return the share from the probabilities, and from what is remembered."""
    right, wrong, informed_, unlikely, sureness, surely_wrong, of_predictions, of_targets, chance = seen
    a, by_chance = right / (right + wrong), chance / (right + wrong)
    kappa = max((a - by_chance) / (1 - by_chance), 0)
    r = min(surely_wrong / sureness / (1 - a), 1)
    u = min(unlikely / informed_, 0.3)
    d = min(of_predictions / of_targets, 1) if of_targets else 1
    return (1 - informed(p) ** 2) ** (
        1000 * d**16 * (kappa * r**8 + (2000 * kappa * u**2 * (0.3 - u) * (1 - r) ** 2) ** 3)
    )


def of_numpy(p, targets):
    """Return the same of a first batch."""
    return share_by_numpy(p, seen_by_numpy(p, targets))


def test_by_hand():
    p = np.array([[0.7, 0.3, 1e-9], [0.2, 0.8, 1e-9], [0.6, 0.4, 1e-9], [0.3, 0.7, 1e-9]])  # the second is the surest
    for second, surest_errs in ((0, True), (1, False)):
        targets = np.eye(3)[[0, second, 0, 1]]
        a, _, _, unlikely, sureness, surely_wrong, of_predictions, of_targets, chance = seen_by_numpy(p, targets)
        assert (surely_wrong / sureness > 1 - a) == surest_errs
        assert unlikely == 0
        assert of_predictions == pytest.approx(-0.45 * math.log(0.45) - 0.55 * math.log(0.55), abs=1e-6)
        assert of_targets == pytest.approx(math.log(4) - 0.75 * math.log(3) if surest_errs else math.log(2))
        assert (a - chance) / (1 - chance) == pytest.approx(1 / 7 if surest_errs else 0.4)
        expected = of_numpy(p, targets)
        assert np.ptp(expected) > 1e-3
        found = share(torch.tensor(p).log(), torch.tensor(targets).argmax(1))
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_unlikely_labels_by_hand():
    """A label is unlikely below the geometric mean of the classes, which is 0.262 in the first row and 0.126 after."""
    p = np.array([[0.6, 0.3, 0.1], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    i = informed(p)
    for labels, expected in (
        ([0, 1, 2], 0),
        ([1, 1, 2], 0),
        ([2, 1, 2], i[0] ** 2),
        ([2, 1, 0], i[0] ** 2 + i[2] ** 2),
    ):
        seen = seen_by_numpy(p, np.eye(3)[labels])
        assert seen[3] == pytest.approx(expected / 3)
        expected = torch.tensor(share_by_numpy(p, seen))
        torch.testing.assert_close(share(torch.tensor(p).log(), torch.tensor(labels)), expected, rtol=1e-6, atol=1e-6)


def test_tells_memorised_labels_from_hard_samples():
    """The surest are right in both, of the others most err: about a likely class, or about any."""
    sure = 6 * torch.eye(6, dtype=F64).repeat(4, 1)
    unsure = torch.eye(6, dtype=F64).repeat(4, 1) * 3 + torch.eye(6, dtype=F64).roll(1, 1).repeat(4, 1) * 2
    input, right = torch.cat([sure, unsure]), torch.arange(48) % 6
    hard, random = right.clone(), right.clone()
    hard[24:42] = (right[24:42] + 1) % 6  # the second most likely class
    random[24:42] = (right[24:42] + 2 + torch.arange(18) % 4) % 6
    for targets in (hard, torch.nn.functional.one_hot(hard, 6).to(F64)):
        assert (share(input, targets)[:24] > 0.9).all()
    for targets in (random, torch.nn.functional.one_hot(random, 6).to(F64)):
        assert (share(input, targets)[:24] < 0.5).all()


def test_no_better_than_chance_keeps_cross_entropy():
    """A network that is sure, of all classes alike, and right as often as any other that guesses."""
    logits = 9 * torch.eye(4, dtype=F64).repeat(4, 1)
    target = torch.arange(16) // 4
    assert (share(logits, target) == 1).all()
    assert (share(logits, torch.arange(16) % 4 * (torch.arange(16) > 7)) < 0.9).any()


def test_classes_that_are_never_predicted_keep_cross_entropy():
    """A network that is sure of two classes out of four, and better than chance, though often wrong."""
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 9, 0, 0]], dtype=F64).repeat(8, 1)
    place = torch.arange(16)
    some, all_four = (place + (place % 8 < 2)) % 2, place % 4
    assert (share(logits, some) < 1e-3).all()
    assert (share(logits, all_four) > 0.9).all()


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), c=st.integers(2, 12), scale=st.floats(0.1, 4))
def test_against_numpy(seed, n, c, scale):
    generator = np.random.default_rng(seed)
    z, y = scale * generator.standard_normal((n, c)), generator.integers(c, size=n)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    g = of_numpy(p, np.eye(c)[y])
    expected = -g * np.log(p[range(n), y]) + (1 - g) * (1 - p[range(n), y])
    value = MAELoss(warmup=True, reduction="none")(torch.tensor(z), torch.tensor(y))
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


def test_remembers_a_few_thousand_samples(generator):
    """The surest of one batch are a handful: kappa, r, u and d are over the last batches, the older the less."""
    loss = MAELoss(warmup=True, reduction="none")
    seen = np.zeros(9)
    for n in (40, 9, 700, 40):
        input, target = draw(generator, n, 5), torch.randint(5, (n,), generator=generator)
        p = input.softmax(1).numpy()
        p_y = p[range(n), target]
        seen = (2560 * seen + n * seen_by_numpy(p, np.eye(5)[target])) / (2560 + n)
        g = share_by_numpy(p, seen)
        expected = -g * np.log(p_y) + (1 - g) * (1 - p_y)
        np.testing.assert_allclose(loss(input, target), expected, rtol=1e-9, atol=1e-12)
    assert not np.allclose(MAELoss(warmup=True, reduction="none")(input, target), expected, rtol=1e-3)


def test_remembers_nothing_that_is_no_number(path, generator):
    """A step that overflows, and that a gradient scaler skips, is one of no consequence."""
    loss, other = APLLoss(), APLLoss()
    input, target = draw(generator, 9, 4).requires_grad_(), torch.randint(4, (9,), generator=generator)
    for wrong in (math.nan, math.inf):
        broken = input.detach().clone()
        broken[2, 1] = wrong
        loss(broken.requires_grad_(), target)
    loss(input, torch.full((9,), -100))
    torch.testing.assert_close(loss(input, target), other(input, target))


def test_its_memory_is_state(generator):
    """It is saved and loaded, goes where the logits are, and stays out of what only looks."""
    loss, twin = APLLoss(), APLLoss()
    batches = [(draw(generator, 30, 6), torch.randint(6, (30,), generator=generator)) for _ in range(3)]
    for input, target in batches[:2]:
        loss(input.float(), target)
    (state,) = (value.clone() for value in loss.state_dict().values())
    with torch.no_grad():
        loss(*batches[2])
    loss.eval()(*batches[2])
    assert torch.equal(*loss.state_dict().values(), state)
    assert state.all()
    twin.load_state_dict(loss.state_dict())
    copied = copy.deepcopy(loss.train())
    expected = loss(*batches[2])
    for same in (twin, copied):
        torch.testing.assert_close(same(*batches[2]), expected)
    assert not torch.isclose(APLLoss()(*batches[2]), expected)
    assert APLLoss(warmup=False).state_dict() == {}


def test_is_cross_entropy_where_all_predictions_are_the_same(make_loss, generator):
    sure_of_one = torch.tensor([[0.0, 9.0, 0.0, 0.0]], dtype=F64).repeat(8, 1)
    for input in (torch.zeros(8, 4, dtype=F64), sure_of_one, draw(generator, 1, 4)):
        input, target = input.requires_grad_(), torch.arange(len(input)) % 4
        values = [loss(input, target) for loss in (make_loss(warmup=True), CELoss())]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, input) for value in values))


def test_is_the_loss_where_they_are_sure_and_differ(make_loss):
    input = 40 * torch.nn.functional.one_hot(torch.arange(12) % 4, 4).to(F64).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 1, 0, 2, 3, 0, 1, 3, 2])  # a third are wrong: better than chance
    values = [loss(input, target) for loss in (make_loss(warmup=True), make_loss())]
    assert torch.equal(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, input) for value in values))


def test_stays_where_the_surest_are_right(generator):
    """Labels that contradict all predictions alike are the labels' fault; else the predictions err, and go on."""
    sure, unsure = 6 * torch.eye(4, dtype=F64).repeat(8, 1), 0.5 * draw(generator, 32, 4)
    input, right = torch.cat([sure, unsure]), torch.arange(32) % 4
    of_unsure = unsure.argsort(1)[range(32), 2 + torch.randint(2, (32,), generator=generator)]  # of the best two
    wrong = right.clone()
    wrong[::2] = (right[::2] + 1 + torch.randint(3, (16,), generator=generator)) % 4
    of_right, of_wrong = (share(input, torch.cat([target, of_unsure]))[:32] for target in (right, wrong))
    assert of_right.median() > 0.9
    assert of_wrong.median() < 0.01


def test_the_share_has_no_gradient(make_loss, path, generator):
    """So the gradient is that of the mixture with the share as it is."""
    if make_loss.args[0] == "ce":
        pytest.skip("cross entropy mixed with itself")
    input, target = (0.3 * draw(generator, 6, 4)).requires_grad_(), torch.tensor([0, 3, 3, 2, -100, 1])
    g = share(input[target >= 0], target[target >= 0])
    ce, plain = CELoss(reduction="none")(input, target), make_loss(reduction="none")(input, target)
    seen = target >= 0
    expected = (g * ce[seen] + (1 - g) * plain[seen]).mean()
    value = make_loss(warmup=True)(input, target)
    assert g.std() > 1e-3
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, input), torch.autograd.grad(expected, input))


def test_does_not_see_what_is_ignored(path, generator):
    input, target = draw(generator, 6, 4), torch.tensor([0, -100, 3, 2, -100, 1])
    seen = target != -100
    expected = APLLoss()(input[seen], target[seen])
    input[~seen] = 9.0
    torch.testing.assert_close(APLLoss()(input.requires_grad_(), target), expected)


def test_a_masked_class_is_as_if_there_were_none(path, generator):
    """Its logits are minus infinity; the samples are fewer than the classes, whose number then does not matter."""
    input, best = draw(generator, 5, 7), torch.randint(6, (5,), generator=generator)
    input[range(5), best] += 9
    target = best.clone()
    target[0] = (best[0] + 1) % 6
    input[0, target[0]] = input[0, best[0]] - 1  # wrong, but not unlikely
    input[:, 6] = -math.inf
    masked, without = (MAELoss(warmup=True) for _ in range(2))
    value = masked(input.requires_grad_(), target)
    torch.testing.assert_close(value, without(input[:, :6], target))
    torch.testing.assert_close(*(loss.state_dict()["_warmup.tally"] for loss in (masked, without)))
    assert masked.state_dict()["_warmup.tally"].count_nonzero() == 8  # all but what is unlikely
    for loss in (masked, APLLoss()):
        (gradient,) = torch.autograd.grad(loss(input, target), input)
        assert gradient[:, :6].all()
        assert not gradient[:, 6].any()


def test_in_an_image_counts_pixels(path, generator):
    image, target = draw(generator, 3, 5, 4, 2).requires_grad_(), torch.randint(5, (3, 4, 2), generator=generator)
    pixels = image.movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(APLLoss()(image, target), APLLoss()(pixels, target.reshape(-1)))


@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=F64)}])
def test_soft_targets_and_smoothing(make_loss, options, generator):
    input, index = draw(generator, 9, 4), torch.randint(4, (9,), generator=generator)
    one_hot = torch.nn.functional.one_hot(index, 4).to(F64)

    def loss(input, target):
        return make_loss(warmup=True, reduction="none", **options)(input, target)

    torch.testing.assert_close(loss(input, one_hot), loss(input, index))
    soft = draw(generator, 9, 4).softmax(1)
    g = of_numpy(input.softmax(1).numpy(), soft.numpy())
    ce, plain = (each(reduction="none", **options)(input, soft) for each in (CELoss, make_loss))
    torch.testing.assert_close(loss(input, soft), torch.tensor(g) * ce + (1 - torch.tensor(g)) * plain)
    smooth = make_loss(warmup=True, reduction="none", label_smoothing=0.1, **options)
    torch.testing.assert_close(smooth(input, index), loss(input, 0.9 * one_hot + 0.1 / 4))


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20), c=st.integers(2, 8))
def test_certificates_hold(make_loss, seed, scale, c):
    loss = make_loss(warmup=True, reduction="none")
    z = torch.from_numpy(scale * np.random.default_rng(seed).standard_normal((4, c)))
    values = torch.stack([loss(z, torch.full((4,), k)) for k in range(c)])
    low, high = loss.bounds(c)
    assert (values >= low - 1e-9).all()
    assert high == math.inf
    low, high = loss.class_sum_range(c)
    assert (values.sum(0) >= low - 1e-9 * max(1, values.abs().max().item())).all()
    assert high == math.inf


def test_claims_no_symmetry():
    for loss in (MAELoss(warmup=True), APLLoss()):
        assert loss.symmetry_constant(4) is None
        assert loss.noise_tolerance(4) == 0.0
        assert loss.asymmetry_ratio(4) == math.inf
        assert loss.bounds(4) == (0.0, math.inf)
        assert loss.class_sum_range(4) == (0.0, math.inf)
    assert APLLoss(warmup=False).noise_tolerance(4) == 0.75


def test_needs_no_other_start():
    with pytest.raises(ValueError, match=r"logit_bias: expected 0.0 with warmup, .*; got 'auto'"):
        APLLoss(logit_bias="auto", warmup=True)
    assert not APLLoss(logit_bias="auto").warmup
    assert APLLoss(logit_bias=0.0).warmup
    for wrong in (1, "yes", None):
        with pytest.raises(TypeError, match="warmup: expected a bool; got"):
            GCELoss(warmup=wrong)
    with pytest.raises(ValueError, match="active: expected a loss without options of its own"):
        APLLoss(active=NCELoss(warmup=True))


@pytest.mark.parametrize("shape", [(40, 7), (6, 7, 3, 2)])
@pytest.mark.parametrize("id", ["mae", "nce+rce", "nfl", "anl-fl"])
@pytest.mark.parametrize("some_ignored", [True, False])
def test_is_the_same_on_both_paths(id, shape, some_ignored, monkeypatch, generator):
    input = draw(generator, *shape).requires_grad_()
    target = torch.randint(7, (shape[0], *shape[2:]), generator=generator)
    if some_ignored:
        target.view(-1)[3] = -100
    monkeypatch.setattr("noisyloss._log_probs._BLOCK", 60)  # several blocks
    found = []
    for threshold in (1, 1 << 60):
        monkeypatch.setattr("noisyloss._log_probs._BLOCKWISE_FROM", threshold)
        value = create_loss(id, warmup=True)(input, target)
        found.append(torch.stack([value, *torch.autograd.grad(value, input)[0].flatten()]))
    assert not torch.isclose(found[0][0], create_loss(id)(input, target))
    torch.testing.assert_close(*found)


def accuracy_after_training(criterion, noise, largest, spread):
    """Return the share of right predictions on new points after 40 epochs on few, long enough to memorise.

    The largest class is so many times the size of the smallest, but for the new points.
    """
    generator = torch.Generator().manual_seed(0)
    centres, sizes = torch.randn(10, 50, generator=generator), largest ** torch.linspace(0, 1, 10)
    train_on = torch.multinomial(sizes, 2000, replacement=True, generator=generator)
    right = torch.cat([train_on, torch.arange(2000) % 10])
    x = centres[right] + spread * torch.randn(4000, 50, generator=generator)
    labels = corrupt(right, symmetric_matrix(10, noise), generator=generator)
    train, test = slice(0, 2000), slice(2000, 4000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(50, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for _ in range(40):
            for rows in torch.randperm(2000).split(100):
                optimizer.zero_grad()
                criterion(model(x[train][rows]), labels[train][rows]).backward()
                optimizer.step()
    return (model(x[test]).argmax(1) == right[test]).double().mean().item()


@pytest.mark.parametrize(("largest", "spread"), [(1, 1.0), (20, 1.0), (1, 2.5)])
def test_keeps_the_promise_of_the_package(largest, spread):
    """Swapped in for cross entropy it loses nothing on right labels, and gains where wrong ones are memorised.

    The last points are so hard that wrong labels are memorised while there is still something to learn.
    """
    clean, noisy = (
        [accuracy_after_training(loss(), noise, largest, spread) for loss in (CELoss, APLLoss)] for noise in (0.0, 0.4)
    )
    assert clean[1] > clean[0] - 0.02
    assert noisy[1] > noisy[0] + 0.15
    assert noisy[1] > clean[1] - 0.1


def test_spread_by_hand():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=F64)
    expected = [0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), math.log(1 / 0.75)]
    divergence, mean_log_p, mean = spread(p.clamp(min=1e-300).log(), None)
    torch.testing.assert_close(divergence, torch.tensor(expected, dtype=F64).unsqueeze(1))
    torch.testing.assert_close(mean_log_p, torch.tensor([[math.log(0.5)], [math.log(1e-300) / 2]], dtype=F64))
    torch.testing.assert_close(mean, torch.tensor([[0.75, 0.25]], dtype=F64))
