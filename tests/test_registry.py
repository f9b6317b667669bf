"""Ids, and that a new loss needs one place: its class."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import noisyloss as nl
from noisyloss._base import LOSSES, LinkedLoss
from noisyloss._recommended import RECOMMENDED

TOY = """
import torch
from noisyloss import PointwiseLoss

class ToyLoss(PointwiseLoss, id="toy"):
    '''A toy: the squared error of the target's probability.'''

    def f(self, log_p):
        return {formula}
"""


def test_ids():
    single = {"ce", "focal", "mae", "rce", "gce", "sce", "nce", "nfl", "nmae", "nrce", "ngce"}
    single |= {"agce", "aul", "ael", "amse", "mse", "nnce", "nnfl", "anl-ce", "anl-fl", "jal-ce", "jal-fl", "js"}
    single |= {"phuber-ce", "phuber-gce", "taylor-ce", "tgce", "unhinged", "nls", "bootstrap"}
    single |= {"epsilon-ce", "epsilon-focal", "anorm", "nl"}
    single |= {"bitempered", "ldr", "logitclip", "sr"}
    sums = {"nce+mae", "nce+rce", "nfl+mae", "nfl+rce", "ngce+mae", "ngce+rce", "mae+rce"}
    sums |= {"nce+agce", "nce+aul", "nce+ael", "epsilon-ce+mae", "epsilon-focal+mae"}
    assert nl.list_losses() == sorted(single | sums)


def test_an_id_gives_its_class():
    for id, cls in LOSSES.items():
        assert type(nl.create_loss(id)) is cls
        assert id in cls.ids
    assert repr(nl.create_loss("nce+rce")) == repr(nl.APLLoss(alpha=1, beta=1, warmup=False))
    assert repr(nl.create_loss("ngce+mae")) == repr(nl.APLLoss("ngce", "mae", 1, 1, warmup=False))


def test_a_class_may_have_several_ids_each_with_its_settings():
    assert nl.create_loss("anl-ce").hyperparameters["gamma"] == 0
    assert nl.create_loss("anl-fl").hyperparameters["gamma"] == 0.5
    assert nl.create_loss("anl-fl", gamma=2).gamma == 2
    assert repr(nl.create_loss("nce+anl-fl", beta=2, p_min=1e-6).passive) == repr(nl.ANLLoss(gamma=0.5, p_min=1e-6))
    assert nl.APLLoss("epsilon-focal", "mae").active.gamma == 0.1


def test_dashes_and_pluses_are_told_apart():
    loss = nl.create_loss("nce+phuber-ce", tau=10)
    assert (type(loss.active), type(loss.passive)) == (nl.NCELoss, nl.PHuberCELoss)
    assert loss.passive.tau == 10


def test_hyperparameters_reach_the_members_that_have_them():
    loss = nl.create_loss("nfl+rce", alpha=2, beta=3, gamma=1, A=-4, reduction="sum")
    expected = nl.APLLoss(nl.NFLLoss(gamma=1), nl.RCELoss(A=-4), 2, 3, reduction="sum", warmup=False)
    assert repr(loss) == repr(expected)
    both = nl.create_loss("gce+ngce", q=0.4)
    assert (both.active.q, both.passive.q) == (0.4, 0.4)


def test_alpha_and_beta_belong_to_the_sum():
    loss = nl.create_loss("sce+mae", alpha=7)
    assert (loss.alpha, loss.active.alpha) == (7, 0.1)
    assert loss.hyperparameters == {"alpha": 7.0, "beta": 1.0, "A": nl.RCELoss().A} | {"SCELoss.alpha": 0.1}


def test_hyperparameters_of_members_that_differ_are_both_shown():
    assert nl.create_loss("gce+ngce").hyperparameters == {"alpha": 1.0, "beta": 1.0, "q": 0.7, "NGCELoss.q": 0.1}


def test_defaults_are_the_published_ones():
    assert nl.FocalLoss().gamma == nl.NFLLoss().gamma == 0.5
    assert nl.GCELoss().q == 0.7
    assert (nl.SCELoss().alpha, nl.SCELoss().beta) == (0.1, 1.0)
    assert abs(nl.RCELoss().A - -9.2103) < 1e-4
    for id in nl.list_losses():
        loss = nl.create_loss(id)
        assert loss.logit_bias == 0.0
    sums = {id: (nl.create_loss(id).alpha, nl.create_loss(id).beta) for id in nl.list_losses() if "+" in id}
    other = {id: weights for id, weights in sums.items() if weights != (1.0, 1.0)}
    assert other == dict.fromkeys(["nce+ael", "nce+agce", "nce+aul"], (1.0, 4.0)) | dict.fromkeys(
        ["epsilon-ce+mae", "epsilon-focal+mae"], (0.01, 10.0)
    )
    assert nl.create_loss("nce+agce").passive.hyperparameters == {"a": 6.0, "q": 1.5}
    assert nl.create_loss("nce+aul").passive.hyperparameters == {"a": 6.3, "q": 1.5}
    assert nl.create_loss("nce+ael").passive.hyperparameters == {"a": 5.0}
    assert nl.ANLLoss().hyperparameters | nl.JALLoss().hyperparameters == {
        "alpha": 1.0, "beta": 1.0, "a": 30.0, "gamma": 0.0, "p_min": 1e-7, "detach_modulator": False,
    }  # fmt: skip
    assert (nl.ANLLoss().alpha, nl.ANLLoss().beta) == (5.0, 5.0)


@pytest.mark.parametrize(
    ("id", "dataset", "expected"),
    [
        ("nce+rce", "cifar10", {"alpha": 1.0, "beta": 1.0, "A": nl.RCELoss().A}),
        ("nce+rce", "cifar100", {"alpha": 10.0, "beta": 0.1, "A": nl.RCELoss().A}),
        ("sce", "cifar100", {"alpha": 6.0, "beta": 0.1, "A": nl.RCELoss().A}),
        ("nce+aul", "cifar10", {"alpha": 1.0, "beta": 4.0, "a": 6.3, "q": 1.5}),
        ("nce+agce", "webvision", {"alpha": 50.0, "beta": 0.1, "a": 2.5, "q": 3.0}),
        ("agce", "mnist", {"a": 4.0, "q": 0.2}),
        ("js", "webvision", {"pi": 0.1, "scaled": False}),
        ("jal-fl", "cifar100", {"alpha": 5.0, "beta": 1.0, "a": 20.0, "gamma": 0.5, "detach_modulator": False}),
        ("phuber-ce", "cifar100", {"tau": 10.0}),
        ("taylor-ce", "cifar100", {"t": 6}),
    ],
)
def test_recommended(id, dataset, expected):
    assert nl.recommended(id, dataset).hyperparameters == expected


def test_every_recommendation_makes_its_loss():
    for id, datasets in RECOMMENDED.items():
        assert id in nl.list_losses()
        for dataset, (differing, _) in datasets.items():
            found = nl.recommended(id, dataset)
            assert nl.create_loss(id, **found.hyperparameters).hyperparameters == found.hyperparameters
            assert differing.items() <= found.hyperparameters.items()
            assert found.source
        assert "cifar10" not in datasets or not datasets["cifar10"][0]  # the default, in one place


def test_the_default_of_the_drop_in_is_our_own():
    loss = nl.APLLoss()
    assert (type(loss.active), type(loss.passive)) == (nl.NCELoss, nl.RCELoss)
    assert (loss.alpha, loss.beta, loss.warmup) == (0.1, 0.2, True)


def test_an_id_cannot_be_taken_twice():
    with pytest.raises(ValueError, match=r"id: 'gce' is taken by noisyloss\.losses\.pointwise\.GCELoss"):
        type("Impostor", (nl.PointwiseLoss,), {}, id="gce")
    assert LOSSES["gce"] is nl.GCELoss


@pytest.mark.parametrize(
    ("formula", "passes"),
    [("torch.expm1(log_p) ** 2", True), ("torch.expm1(log_p.detach()) ** 2", False), ("-torch.exp(log_p)[:1]", False)],
    ids=["right", "no gradient", "wrong shape"],
)
def test_a_toy_loss_of_a_few_lines_enters_the_property_suite(tmp_path, formula, passes):
    (tmp_path / "toy.py").write_text(TOY.format(formula=formula))
    suite = Path(__file__).with_name("test_properties.py")
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-p", "toy", "-k", "[toy or -toy"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(suite)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        cwd=suite.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    summary = run.stdout.splitlines()[-1]
    assert (run.returncode == 0) == passes, run.stdout[-3000:]
    assert ("failed" in summary) != passes
    assert ("passed" in summary) or not passes


def test_the_drop_in_trains():
    """Two Gaussian clusters, a third of the labels wrong: the swap of one line learns them."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(600) % 2
    x = torch.randn(600, 2, generator=generator) + 4 * clean[:, None] - 2
    noisy = nl.noise.corrupt(clean, nl.noise.symmetric_matrix(2, 1 / 3), generator=0)
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nl.APLLoss()
    for _ in range(100):
        optimizer.zero_grad()
        criterion(model(x), noisy).backward()
        optimizer.step()
    assert (noisy != clean).sum() == 200
    assert (model(x).argmax(1) == clean).float().mean() > 0.97


class _Halved(LinkedLoss):
    """Cross entropy of half the logits."""

    def link(self, input):
        return input / 2

    def per_class(self, log_p, sums):
        return -log_p


@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_a_linked_loss_sees_transformed_logits_alone_and_in_a_sum(bias):
    input, target = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    biased = input + bias * torch.nn.functional.one_hot(target, 5)
    halved = torch.nn.functional.cross_entropy(biased / 2, target)
    plain = torch.nn.functional.cross_entropy(biased, target)
    assert not torch.isclose(halved, plain)
    soft = torch.nn.functional.one_hot(target, 5).float()
    whole = nl.WeightedSum([nl.WeightedSum([_Halved(), nl.CELoss()], [2, 3]), nl.NCELoss()], [1, 0], logit_bias=bias)
    for kind in (target, soft):
        torch.testing.assert_close(_Halved(logit_bias=bias)(input, kind), halved)
        torch.testing.assert_close(whole(input, kind), 2 * halved + 3 * plain)
