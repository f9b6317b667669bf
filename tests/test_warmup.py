"""The warm-up: cross entropy where the network knows nothing, the loss where it does, and what goes in between."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import torch
from conftest import ALL_PATHS, PATHS, take
from hypothesis import given
from hypothesis import strategies as st

from noisyloss import APLLoss, CELoss, GCELoss, MAELoss, NCELoss, create_loss
from noisyloss._log_probs import spread
from noisyloss.noise import corrupt, symmetric_matrix

F64 = torch.float64


def draw(generator, *shape, dtype=F64):
    return 2 * torch.randn(*shape, dtype=dtype, generator=generator)


def labels_of(input, generator):
    """Draw labels that agree with the predictions as often as these claim."""
    p = input.detach().movedim(1, -1).softmax(-1)
    return torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(p.shape[:-1])


def warming_up(highest, loss=MAELoss, **options):
    """Return a loss to which u has been this high already, so that a single batch shows what follows."""
    loss = loss(warmup=True, **options).double()
    loss._warmup.highest.fill_(highest)
    loss._warmup.faded.fill_(highest)
    return loss


def share(input, target, highest=0.5):
    """Return the share of cross entropy in the loss of every sample, read off MAE, of which it is linear."""
    losses = (warming_up(highest, reduction="none"), CELoss(reduction="none"), MAELoss(reduction="none"))
    value, ce, mae = (loss(input, target).detach() for loss in losses)
    return (value - mae) / (ce - mae)


def highest_u(input, target):
    """Return what is remembered as the highest u after some thousand of these samples."""
    loss, times = MAELoss(warmup=True), 1 + 2000 // len(input)
    loss(input.repeat(times, 1), target.repeat(times, *[1] * (target.dim() - 1)))
    return loss._warmup.highest.item()


def claims(p):
    """Return by numpy what each prediction claims to tell, in nats."""
    return (p * np.log(p / p.mean(0))).sum(1)


def informed(p):
    """Return i by numpy: what each prediction says of its sample."""
    return np.minimum(claims(p) / math.log(min(p.shape)), 1)


def seen_by_numpy(p, targets):
    """Return what is remembered of a batch, from the probabilities and the targets, as distributions."""
    i, p_y, likely = informed(p), (p * targets).sum(1), math.ceil((p.shape[1] - 1) ** (2 / 3))
    unlikely = (targets * ((p[:, None] >= p[:, :, None]).sum(2) > likely)).sum(1)
    mean, of_targets = p.mean(0), targets.mean(0)
    chance, log_chance, log_p_y = mean @ of_targets, np.log(mean) @ of_targets, (targets * np.log(p)).sum(1)
    means = map(np.mean, (claims(p), i**2, i**2 * unlikely))
    labelled = of_targets @ np.maximum(np.log(mean), -math.log(2 * len(p)))
    return np.array([1, p_y.mean(), chance, log_p_y.mean(), log_chance, *means, mean @ np.log(mean), labelled])


def told_by_numpy(seen):
    """Return kappa and u from what is remembered."""
    all_, right, chance, log_right, log_chance, claimed, sum_i2, unlikely, _, _ = seen
    a, b = right / all_, chance / all_
    kappa, c = np.clip((a - b) / (1 - b), 1e-100, 1), (log_right - log_chance) / claimed
    return kappa, max(unlikely / sum_i2 - 0.0005 / kappa**2, 0) * np.clip((1 + c) / 2, 0, 1)


def share_by_numpy(p, seen, highest, faded, samples):
    """Return the share from the probabilities, what is remembered and the highest u, and this as it is now.

    ``samples`` were seen in all, with these.
    """
    kappa, u = told_by_numpy(seen)
    highest, faded = (max(x * min(30 * kappa, 1), u * min(10 * seen[0], 1)) for x in (highest, faded))
    above, r = max(faded - u, 0), seen[8] / seen[9]
    exponent = (14 * above / faded**0.5 * min(10 * highest, 1) ** 8) ** 16 if faded else 0.0
    faded -= (exponent < 1) * above * len(p) / (102_400 + samples)
    return (1 - informed(p) ** 2) ** (exponent * min(1.25 * r, 1) ** 64), highest, faded


def of_numpy(p, targets, highest=0.5):
    """Return the share of a first batch."""
    return share_by_numpy(p, seen_by_numpy(p, targets), highest, highest, len(p))[0]


def above(u):
    """Return how high u must have been for shares that are neither 0 nor 1."""
    v = np.linspace(u, 1, 100_000)[1:]
    return v[np.searchsorted(14 * (v - u) / v**0.5 * np.minimum(10 * v, 1) ** 8, 1.1)]


def where_shares_vary(input, target):
    """Return the same from the logits and the classes of a batch."""
    p = input.detach().softmax(1).numpy()
    kappa, u = told_by_numpy(seen_by_numpy(p, np.eye(p.shape[1])[target]))
    return above(u) / max(min(30 * kappa, 1), 1e-3)


P = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])  # the mean is 0.4, 0.35, 0.25


def test_by_hand():
    """The least likely of three classes is unlikely."""
    a, b = (
        0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1),
        0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1),
    )
    m_ = np.array([0.4, 0.35, 0.25])
    m = np.log(m_)
    claimed = [a - m @ x for x in P[:3]] + [b - m @ P[3]]
    i2 = np.square(claimed) / math.log(3) ** 2
    for labels, told, unlikely in (
        ([0, 1, 2, 0], [0.7, 0.7, 0.7, 0.6], 0),
        ([2, 1, 2, 0], [0.1, 0.7, 0.7, 0.6], i2[0] / i2.sum()),
        ([0, 1, 0, 1], [0.7, 0.7, 0.1, 0.3], i2[2] / i2.sum()),
    ):
        shares = np.bincount(labels, minlength=3) / 4
        chance = shares @ m_
        kappa, c = (np.mean(told) - chance) / (1 - chance), (np.mean(np.log(told)) - shares @ m) / np.mean(claimed)
        u = max(unlikely - 0.0005 / kappa**2, 0) * min((1 + c) / 2, 1)
        assert highest_u(torch.tensor(P).log(), torch.tensor(labels)) == pytest.approx(u, rel=1e-5)
        high = above(u)
        expected = (1 - i2) ** ((14 * (high - u) / high**0.5 * min(10 * high, 1) ** 8) ** 16)
        assert np.ptp(expected) > 1e-3
        found = share(torch.tensor(P).log(), torch.tensor(labels), high)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def guesses(right, sureness):
    """Return logits of ten classes that favour one each, all others alike."""
    return sureness * torch.nn.functional.one_hot(right, 10).to(F64)


RIGHT = torch.arange(1000) % 10
FIVE_WRONG = RIGHT.where(torch.arange(1000) % 50 < 30, (RIGHT + 5) % 10)  # 40 % of each class


def test_passes_when_wrong_labels_are_memorised():
    """A batch of which it has seen no other state looks like hard samples, and keeps cross entropy."""
    sure = torch.arange(1000) % 100 < 50
    memorised = guesses(FIVE_WRONG, 5.0).where(sure[:, None], guesses(RIGHT, 2.0))
    shares = []
    for seen_before in (0, 10):
        loss = MAELoss(warmup=True, reduction="none")
        for _ in range(seen_before):
            loss(guesses(RIGHT, 2.7), FIVE_WRONG)  # 0.62 for one class: it knows that four of ten are wrong
        for _ in range(30):
            value = loss(memorised, FIVE_WRONG)
        plain, ce = (each(reduction="none")(memorised, FIVE_WRONG) for each in (MAELoss, CELoss))
        shares.append(((value - plain) / (ce - plain))[sure])
    assert (shares[0] > 0.95).all()
    assert (shares[1] < 0.05).all()


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_tells_wrong_labels_from_hard_samples(as_probabilities):
    """Those who err on hard samples hold the label for likely, so learning these is no memorising."""
    second = guesses(RIGHT, 2.7) + guesses((RIGHT + 5) % 10, 1.5)
    target = torch.nn.functional.one_hot(FIVE_WRONG, 10).to(F64) if as_probabilities else FIVE_WRONG
    assert highest_u(second, target) == 0
    assert highest_u(guesses(RIGHT, 2.7), target) == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize(("classes", "unlikely", "likely"), [(2, 0, 4), (10, -0.5, 1), (100, 0.5, 1.5), (1000, 1, 2)])
def test_finds_them_among_any_number_of_classes(classes, unlikely, likely, generator):
    """Of a thousand classes a label above most is still unlikely, and learned by heart long before it is the best."""
    right = torch.arange(1000) % classes
    labels = right.where(torch.arange(1000) % 5 > 0, (right + 1) % classes)  # a fifth are wrong
    wrong = torch.nn.functional.one_hot(labels, classes).bool() & (labels != right)[:, None]
    found = []
    for logit in (unlikely, likely):
        others = torch.randn(1000, classes, dtype=F64, generator=generator) if classes > 2 else torch.zeros(1000, 2)
        input = others.double().masked_fill(wrong, logit)
        best = math.log(4 * (classes - 1)) + 0.5  # p is 0.8 or so
        found.append(highest_u(input.scatter(1, right[:, None], best), labels))
    assert found[0] > 0.15
    assert found[1] < 0.03


def test_asks_no_predictions_that_know_nothing():
    """Half of the labels are unlikely where predictions agree with no more of them than chance makes."""
    generator = torch.Generator().manual_seed(0)
    at_random = torch.randint(10, (1000,), generator=generator)
    chance = (at_random == FIVE_WRONG).double().mean()
    assert highest_u(guesses(at_random, 0.5), FIVE_WRONG) < 0.1 + 20 * abs(chance - 0.1)
    assert highest_u(guesses((RIGHT + 1) % 10, 0.5), FIVE_WRONG) == 0


def test_asks_no_predictions_that_claim_too_much():
    """Who is sure of all, and wrong in four of ten cases, has not noticed; the labels may be right."""
    found = [highest_u(guesses(RIGHT, sureness), FIVE_WRONG) for sureness in (2.7, 5.0, 7.0, 30.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.37
    assert found[-1] == 0


def test_the_first_batches_are_few_witnesses():
    """Until a thousand samples are seen u enters v as far as they are."""
    loss = MAELoss(warmup=True)
    loss(guesses(RIGHT[:100], 2.7), FIVE_WRONG[:100])
    p = guesses(RIGHT[:100], 2.7).softmax(1).numpy()
    _, u = told_by_numpy(seen_by_numpy(p, np.eye(10)[FIVE_WRONG[:100]]))
    assert loss._warmup.highest.item() == pytest.approx(u * 1000 / 10340)


def test_forgets_what_a_network_that_is_lost_has_found():
    """Its predictions agree with no more labels than chance makes: it has to learn again, by cross entropy."""
    loss = warming_up(0.3, reduction="none")
    input = guesses((RIGHT + 1) % 10, 5.0)
    torch.testing.assert_close(loss(input, FIVE_WRONG), CELoss(reduction="none")(input, FIVE_WRONG))
    assert loss._warmup.highest == 0


def test_brings_back_classes_that_are_lost():
    """Where half of them are never predicted no gradient of the robust loss does, however sure the predictions are."""
    shares = [share(guesses(RIGHT % classes, 9.0), FIVE_WRONG).mean().item() for classes in (10, 9, 5)]
    assert shares[0] == shares[1] == pytest.approx(0, abs=1e-6)
    assert shares[2] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("ignored", [0, 1000])
def test_no_class_is_lost_of_which_the_batch_has_no_sample(ignored):
    """Of a thousand classes most have none, and the wrong label of a sample is one of these."""
    right = torch.arange(64)
    labels = torch.cat([right.where(right % 10 < 6, right + 500), torch.full((ignored,), -100)])
    input = torch.cat([20 * torch.nn.functional.one_hot(right, 1000), torch.zeros(ignored, 1000)])
    loss = MAELoss(warmup=True)
    loss(input.double(), labels)
    *_, entropy, cross_entropy = loss._warmup.tally.tolist()
    wrong = 24 / 64
    expected = math.log(64) / ((1 - wrong) * math.log(64) + wrong * math.log(128))
    assert entropy / cross_entropy == pytest.approx(expected, rel=1e-3)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), c=st.integers(2, 12), scale=st.floats(0.1, 4))
def test_against_numpy(seed, n, c, scale):
    generator = np.random.default_rng(seed)
    z = scale * generator.standard_normal((n, c))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = np.array([generator.choice(c, p=p_) for p_ in p])
    targets = np.eye(c)[y]
    seen = seen_by_numpy(p, targets) * n / (10240 + n)
    high = where_shares_vary(torch.tensor(z), torch.tensor(y)) + generator.uniform(-0.01, 0.01)
    w = generator.uniform(0.05, 0.15)
    g, highest, faded = share_by_numpy(p, seen, w, high, n)
    expected = -g * np.log(p[range(n), y]) + (1 - g) * (1 - p[range(n), y])
    loss = warming_up(high, reduction="none")
    loss._warmup.highest.fill_(w)
    np.testing.assert_allclose(loss(torch.tensor(z), torch.tensor(y)), expected, rtol=1e-9, atol=1e-12)
    assert loss._warmup.highest.item() == pytest.approx(highest, rel=1e-9)
    assert loss._warmup.faded.item() == pytest.approx(faded, rel=1e-9)


@pytest.mark.parametrize("slowly", [True, False])
def test_a_network_that_learns_to_tell_more_may_take_its_time(slowly, generator):
    """The number of unlikely labels falls then, too, but by less and less: only a fall that is fast ends it."""
    right, labels, faded = RIGHT.repeat(4), FIVE_WRONG.repeat(4), []
    loss, ce, plain = MAELoss(warmup=True, reduction="none"), CELoss(reduction="none"), MAELoss(reduction="none")
    when = torch.rand(4000, generator=generator)
    for batch in range(1000 if slowly else 75):
        told = when < 0.09 * (math.log1p(batch / 25) if slowly else math.log(40) * min(batch / 50, 1))
        input = guesses(labels, 3.0).where(told[:, None], guesses(right, 3.0))
        value = loss(input, labels)
        faded.append(loss._warmup.faded.item())
    share = ((value - plain(input, labels)) / (ce(input, labels) - plain(input, labels))).min()
    if slowly:
        assert share > 0.95
        assert told_by_numpy(loss._warmup.tally.numpy())[1] < faded[0] - 0.06
    else:
        assert share < 0.05
        assert faded[-1] == faded[-9] > faded[0] - 0.04


def test_remembers_a_few_thousand_samples(generator):
    """What it learns of one batch is little: u, kappa and c are over the last batches, the older the less."""
    many = draw(generator, 2000, 5)
    high = where_shares_vary(many, labels_of(many, generator))
    loss, seen, w, v, samples = warming_up(high, reduction="none"), np.zeros(10), high, high, 0
    for n in (40, 9, 700, 40):
        samples += n
        input = draw(generator, n, 5)
        target = labels_of(input, generator)
        p = input.softmax(1).numpy()
        p_y = p[range(n), target]
        seen = (10240 * seen + n * seen_by_numpy(p, np.eye(5)[target])) / (10240 + n)
        g, w, v = share_by_numpy(p, seen, w, v, samples)
        expected = -g * np.log(p_y) + (1 - g) * (1 - p_y)
        np.testing.assert_allclose(loss(input, target), expected, rtol=1e-9, atol=1e-12)
    assert not np.allclose(warming_up(high, reduction="none")(input, target), expected, rtol=1e-3)


def test_remembers_nothing_that_is_no_number(path, generator):
    """A step that overflows, and that a gradient scaler skips, is one of no consequence."""
    loss, other = (warming_up(0.5, APLLoss) for _ in range(2))
    input = draw(generator, 9, 4).requires_grad_()
    target = labels_of(input, generator)
    torch.testing.assert_close(loss(input, target), other(input, target))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    for wrong in (math.nan, math.inf):
        broken = input.detach().clone()
        broken[2, 1] = wrong
        loss(broken.requires_grad_(), target)
    torch.testing.assert_close(dict(loss.state_dict()), before, rtol=0, atol=0)
    loss(input, torch.full((9,), -100))
    torch.testing.assert_close(loss(input, target), other(input, target))


def test_its_memory_is_state(generator):
    """It is saved and loaded, goes where the logits are, and stays out of what only looks."""
    loss, twin = APLLoss(), APLLoss()
    batches = [(guesses(RIGHT[:40], sureness), FIVE_WRONG[:40]) for sureness in (2.0, 3.0, 4.0)]
    for input, target in batches[:2]:
        loss(input.float(), target)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    with torch.no_grad():
        loss(*batches[2])
    loss.eval()(*batches[2])
    torch.testing.assert_close(dict(loss.state_dict()), state)
    assert len(state) == 4
    assert all(value.all() for value in state.values())
    twin.load_state_dict(loss.state_dict())
    copied = copy.deepcopy(loss.train())
    loss(*batches[2])
    for same in (twin, copied):
        same(*batches[2])
        torch.testing.assert_close(dict(same.state_dict()), dict(loss.state_dict()))
    assert not torch.isclose(loss.state_dict()["_warmup.tally"], state["_warmup.tally"].to(F64)).any()
    assert APLLoss(warmup=False).state_dict() == {}


def test_transforms_use_what_is_remembered(generator):
    """They leave it as it is, for no state leaves them."""
    input = draw(generator, 9, 4)
    target = labels_of(input, generator)
    loss, other = (warming_up(0.5, APLLoss) for _ in range(2))
    before = loss.state_dict()["_warmup.tally"].clone()
    gradient = torch.func.grad(loss)(input, target)
    assert torch.equal(loss.state_dict()["_warmup.tally"], before)
    (expected,) = torch.autograd.grad(other(input.requires_grad_(), target), input)
    torch.testing.assert_close(gradient, expected)


def test_is_cross_entropy_where_all_predictions_are_the_same(make_loss, generator):
    sure_of_one = torch.tensor([[0.0, 9.0, 0.0, 0.0]], dtype=F64).repeat(8, 1)
    for input in (torch.zeros(8, 4, dtype=F64), sure_of_one, draw(generator, 1, 4)):
        input, target = input.requires_grad_(), torch.arange(len(input)) % 4
        values = [loss(input, target) for loss in (warming_up(0.5, make_loss), CELoss())]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, input) for value in values))


def test_is_the_loss_where_they_are_sure_and_differ(make_loss):
    input = 40 * torch.nn.functional.one_hot(torch.arange(12) % 4, 4).to(F64).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 1, 0, 2, 3, 0, 1, 3, 2])  # a third are wrong: better than chance
    values = [loss(input, target) for loss in (warming_up(0.5, make_loss), make_loss())]
    assert torch.equal(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, input) for value in values))


def test_what_knows_nothing_has_cross_entropy_even_among_the_sure():
    sure = 40 * torch.nn.functional.one_hot(torch.arange(12) % 4, 4).to(F64)
    input = torch.cat([sure, torch.zeros(1, 4, dtype=F64)])
    target = torch.tensor([0, 1, 2, 3, 1, 0, 2, 3, 0, 1, 3, 2, 1])
    values = warming_up(0.5, reduction="none")(input, target)
    torch.testing.assert_close(values[:-1], (target[:-1] != sure.argmax(1)).to(F64))  # MAE
    torch.testing.assert_close(values[-1].exp().item(), 4.0)


def test_the_share_has_no_gradient(make_loss, path, generator):
    """So the gradient is that of the mixture with the share as it is."""
    if make_loss.args[0] == "ce":
        pytest.skip("cross entropy mixed with itself")
    input, seen = draw(generator, 6, 4).requires_grad_(), torch.arange(6) != 4
    target = labels_of(input, generator).where(seen, -100)
    high = where_shares_vary(input[seen], target[seen])
    g = share(input[seen], target[seen], high)
    ce, plain = CELoss(reduction="none")(input, target), make_loss(reduction="none")(input, target)
    expected = (g * ce[seen] + (1 - g) * plain[seen]).mean()
    value = warming_up(high, make_loss)(input, target)
    assert g.std() > 1e-3
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, input), torch.autograd.grad(expected, input))


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_the_share_has_no_gradient_where_it_is_a_tensor(as_probabilities, monkeypatch, generator):
    """As to compilers, where the state is one of tensors, too."""
    input = draw(generator, 40, 5).requires_grad_()
    target = labels_of(input, generator)
    high = where_shares_vary(input, target)
    g = share(input, target, high).detach()
    expected = (g * CELoss(reduction="none")(input, target) + (1 - g) * MAELoss(reduction="none")(input, target)).mean()
    (expected,) = torch.autograd.grad(expected, input)
    target = torch.nn.functional.one_hot(target, 5).to(F64) if as_probabilities else target
    for path in ("plain", "compiled"):
        take(path, monkeypatch)
        loss = warming_up(high)
        torch.testing.assert_close(torch.autograd.grad(loss(input, target), input)[0], expected)
        assert not any(state.requires_grad for state in loss.buffers())
    assert g.std() > 0.01


@pytest.mark.parametrize("classes", [4, 9])  # fewer and more than samples that count
@ALL_PATHS
def test_does_not_see_what_is_ignored(path, classes, generator):
    input, seen = draw(generator, 10, classes), torch.arange(10) % 5 < 3
    target = labels_of(input, generator).where(seen, -100)
    high = where_shares_vary(input[seen], target[seen])
    all_, without = (warming_up(high, APLLoss) for _ in range(2))
    expected = without(input[seen], target[seen])
    input[~seen] = 9.0
    torch.testing.assert_close(all_(input.requires_grad_(), target), expected)
    torch.testing.assert_close(all_.state_dict(), without.state_dict())


def test_a_masked_class_is_as_if_there_were_none(path, generator):
    """Its logits are minus infinity; the samples are fewer than the classes, whose number then does not matter."""
    input, best = draw(generator, 5, 7), torch.randint(6, (5,), generator=generator)
    input[range(5), best] += 9
    target = best.clone()
    target[0] = input[0, :6].argmin()
    input[:, 6] = -math.inf
    high = where_shares_vary(input[:, :6], target)
    masked, without = (warming_up(high) for _ in range(2))
    value = masked(input.requires_grad_(), target)
    torch.testing.assert_close(value, without(input[:, :6], target))
    torch.testing.assert_close(*(loss.state_dict()["_warmup.tally"] for loss in (masked, without)))
    assert masked.state_dict()["_warmup.tally"].all()
    assert not torch.isclose(value, CELoss()(input[:, :6], target))
    for loss in (masked, warming_up(high, APLLoss)):
        (gradient,) = torch.autograd.grad(loss(input, target), input)
        assert gradient[:, :6].all()
        assert not gradient[:, 6].any()


def test_in_an_image_counts_pixels(path, generator):
    image = draw(generator, 3, 5, 4, 2).requires_grad_()
    target = labels_of(image, generator)
    pixels = image.movedim(1, -1).reshape(-1, 5)
    high = where_shares_vary(pixels, target.reshape(-1))
    values = [warming_up(high, APLLoss)(*each) for each in ((image, target), (pixels, target.reshape(-1)))]
    torch.testing.assert_close(*values)
    assert not torch.isclose(values[0], CELoss()(image, target))


@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=F64)}])
def test_soft_targets_and_smoothing(make_loss, options, generator):
    input = draw(generator, 9, 4)
    index = labels_of(input, generator)
    one_hot = torch.nn.functional.one_hot(index, 4).to(F64)

    high = where_shares_vary(input, index)

    def loss(input, target):
        return warming_up(high, make_loss, reduction="none", **options)(input, target)

    torch.testing.assert_close(loss(input, one_hot), loss(input, index))
    soft = draw(generator, 9, 4).softmax(1)
    g = of_numpy(input.softmax(1).numpy(), soft.numpy(), high)
    ce, plain = (each(reduction="none", **options)(input, soft) for each in (CELoss, make_loss))
    torch.testing.assert_close(loss(input, soft), torch.tensor(g) * ce + (1 - torch.tensor(g)) * plain)
    smooth = warming_up(high, make_loss, reduction="none", label_smoothing=0.1, **options)
    torch.testing.assert_close(smooth(input, index), loss(input, 0.9 * one_hot + 0.1 / 4))


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20), c=st.integers(2, 8))
def test_certificates_hold(make_loss, seed, scale, c):
    loss = warming_up(0.5, make_loss, reduction="none")
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
def test_is_the_same_on_all_paths(id, shape, some_ignored, monkeypatch, generator):
    input = draw(generator, *shape).round().requires_grad_()  # so classes tie
    target = labels_of(input, generator)
    if some_ignored:
        target.view(-1)[3] = -100
    monkeypatch.setattr("noisyloss._log_probs._BLOCK", 60)  # several blocks
    kept = target >= 0
    high = where_shares_vary(input.movedim(1, -1)[kept], target[kept])
    found = []
    for path in PATHS:
        take(path, monkeypatch)
        value = warming_up(high, functools.partial(create_loss, id))(input, target)
        found.append(torch.stack([value, *torch.autograd.grad(value, input)[0].flatten()]))
    for other in (create_loss(id), CELoss()):
        assert not torch.isclose(found[0][0], other(input, target))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


@pytest.mark.parametrize(
    "target",
    [torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), torch.full((3,), -100)],
    ids=["soft", "index", "ignored"],
)
def test_a_batch_of_nothing_leaves_no_trace(target):
    loss, state = APLLoss(reduction="sum"), APLLoss().state_dict()
    assert loss(torch.zeros(len(target), 5, requires_grad=True), target) == 0
    torch.testing.assert_close(loss.state_dict(), state, rtol=0, atol=0)


def test_is_cross_entropy_to_the_last_bit_while_it_knows_nothing(path, generator):
    """Then the loss is not even computed where values are at hand: here it would raise."""

    class Unused(MAELoss):
        def f(self, log_p):
            raise AssertionError

    input, target = draw(generator, 40, 5, dtype=torch.float32), torch.randint(5, (40,), generator=generator)
    for labels in (target, torch.nn.functional.one_hot(target, 5).float()):
        values = [loss(input.requires_grad_(), labels) for loss in (Unused(warmup=True), CELoss())]
        assert torch.equal(*values)
        assert torch.equal(*(torch.autograd.grad(value, input)[0] for value in values))


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
    divergence, log_mean = spread(p.clamp(min=1e-300).log(), None)
    torch.testing.assert_close(divergence, torch.tensor(expected, dtype=F64).unsqueeze(1))
    torch.testing.assert_close(log_mean, torch.tensor([[0.75, 0.25]], dtype=F64).log())
