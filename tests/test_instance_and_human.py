"""Noise that depends on the input, and the labels that people gave."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats  # scikit-learn brings it

from noisyloss.noise import corrupt_by_instance, load_cifar10n

CLEAN = torch.arange(4).repeat(5000)
FEATURES = torch.randn(len(CLEAN), 3, 2, generator=torch.Generator().manual_seed(0))
PINNED = [0, 1, 3, 3, 0, 1, 0, 3, 0, 0, 1, 0, 2, 1, 2, 0, 0, 2, 2, 3, 1, 1, 0, 3]  # the first labels with seed 0


def draw(targets=CLEAN, features=FEATURES, rate=0.4, *, num_classes=4, generator=0, **options):
    return corrupt_by_instance(targets, features, rate, num_classes=num_classes, generator=generator, **options)


# Instance-dependent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.4, 0.8, 1.0])
def test_share_of_flips_is_the_mean_of_the_truncated_normal(rate):
    flips = (draw(rate=rate) != CLEAN).double()
    mean = stats.truncnorm((0 - rate) / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1).mean()
    assert abs(flips.mean() - mean) < 4 * (mean * (1 - mean) / len(CLEAN)) ** 0.5 + 1e-12


def test_flip_rates_follow_the_truncated_normal():
    from noisyloss.noise.instance import _rates

    for rate in (0.05, 0.4, 0.97):
        rates = _rates(20_000, rate, 0.1, torch.Generator().manual_seed(1)).numpy()
        expected = stats.truncnorm((0 - rate) / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
        assert stats.kstest(rates, expected.cdf).pvalue > 1e-3
        assert 0 <= rates.min() <= rates.max() <= 1


def oracle(clean, features, rate, num_classes, seed, std=0.1):
    """The generator sample by sample in NumPy and SciPy, from the same uniform numbers."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, dtype=torch.float64, generator=generator).numpy() + 2**-54

    n = len(clean)
    flip = uniform(n)
    rates = stats.truncnorm((0 - rate) / std, (1 - rate) / std, loc=rate, scale=std).ppf(uniform(n))
    choice = uniform(n)
    W = [stats.norm.ppf(uniform(features[0].size, num_classes)) for _ in range(num_classes)]
    noisy = []
    for i, label in enumerate(clean):
        logits = features[i].ravel().astype(np.float64) @ W[label]
        logits[label] = -np.inf
        P = np.exp(logits - logits.max())
        P /= P.sum()
        noisy.append(int(np.searchsorted(P.cumsum(), choice[i], side="right")) if flip[i] < rates[i] else label)
    return noisy


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_equals_a_plain_reference(scale):
    clean, features = CLEAN[:600].tolist(), scale * FEATURES[:600].numpy()
    expected = oracle(clean, features, 0.4, 4, seed=3)
    assert draw(clean, features, generator=3) == expected
    assert 0.3 < np.mean(np.array(expected) != clean) < 0.5


def test_the_wrong_label_follows_from_the_input():
    twins = torch.tensor([[[1.0, -2.0]] * 2, [[-3.0, 0.5]] * 2]).repeat(2000, 1, 1)  # two kinds of images
    clean = torch.zeros(len(twins), dtype=torch.long)
    noisy = draw(clean, 20 * twins)
    for kind in (0, 1):
        labels = noisy[kind::2]
        wrong = labels[labels != 0]
        assert (wrong == wrong[0]).float().mean() > 0.99
    chance = draw(clean, 0 * twins)  # without features all wrong labels are equally likely
    assert stats.chisquare(chance[chance != 0].bincount()[1:]).pvalue > 1e-3


def test_std_0_is_the_same_rate_for_all():
    assert torch.equal(draw(rate=0.0, std=0.0), CLEAN)
    assert (draw(rate=1.0, std=0.0) != CLEAN).all()
    assert abs((draw(rate=0.3, std=0.0) != CLEAN).double().mean() - 0.3) < 0.013


def test_same_seed_same_labels_and_no_global_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    noisy = draw()
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(draw(generator=generator), noisy)
    assert not torch.equal(draw(generator=generator), noisy)  # it has advanced
    assert not torch.equal(draw(generator=1), noisy)
    assert torch.equal(draw(features=FEATURES.numpy().astype(np.float64)), noisy)
    assert noisy[:24].tolist() == PINNED


def test_same_type_back():
    for targets in (CLEAN.int(), CLEAN.numpy().astype(np.uint8), CLEAN.tolist()):
        before = targets.copy() if hasattr(targets, "copy") else targets.clone()
        noisy = draw(targets)
        assert type(noisy) is type(targets)
        assert getattr(noisy, "dtype", None) == getattr(targets, "dtype", None)
        assert np.array_equal(np.asarray(targets), np.asarray(before))
        assert np.array_equal(np.asarray(noisy), draw().numpy())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": 1.5}, ValueError, "noise_rate must be in"),
        ({"rate": "0.4"}, TypeError, "noise_rate must be a real number"),
        ({"std": -0.1}, ValueError, "std must be in"),
        ({"num_classes": 3}, ValueError, "targets must be in"),
        ({"num_classes": 4.0}, TypeError, "num_classes must be an integer"),
        ({"targets": CLEAN.view(2, -1)}, ValueError, "targets must be of shape"),
        ({"features": FEATURES[1:]}, ValueError, "a row for each of the 20000 targets, but got shape .19999, 3, 2"),
        ({"features": torch.zeros(len(CLEAN))}, ValueError, "features must be of shape"),
        ({"features": FEATURES.where(FEATURES < 3, torch.inf)}, ValueError, "features must be finite, but got inf"),
        ({"features": [["a"]] * len(CLEAN)}, TypeError, "features must hold real numbers"),
        ({"generator": None}, TypeError, "generator must be"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        draw(**arguments)


# Human ----------------------------------------------------------------------------------------------------------------

LABELS = {
    "clean_label": np.array([6, 9, 9, 4]),
    "aggre_label": np.array([6, 9, 9, 4]),
    "worse_label": np.array([4, 9, 0, 5]),
    "random_label1": np.array([6, 9, 9, 4]),
    "random_label2": np.array([4, 9, 9, 5]),
    "random_label3": np.array([6, 9, 0, 4]),
}


def write(path: Path, held: object) -> Path:
    """Write as CIFAR-10N's authors did: torch.save, in the names of NumPy 1."""
    data = pickle.dumps(held, protocol=2).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


def test_reads_what_the_authors_published(tmp_path):
    labels = load_cifar10n(write(tmp_path / "CIFAR-10_human.pt", LABELS))
    assert list(labels) == ["clean", "aggre", "worst", "random1", "random2", "random3"]
    assert [row.tolist() for row in labels.values()] == [row.tolist() for row in LABELS.values()]
    assert all(row.dtype == torch.int64 for row in labels.values())
    labels["worst"][0] = 1  # a copy of its own


def test_reads_the_real_file():
    folders = [os.environ.get("NOISYLOSS_CIFAR10N"), "~/.cache/noisyloss"]
    paths = [Path(folder).expanduser() / "CIFAR-10_human.pt" for folder in folders if folder]
    path = next((path for path in paths if path.exists()), None)
    if not path:
        pytest.skip("CIFAR-10_human.pt is not there; NOISYLOSS_CIFAR10N names its folder")
    labels = load_cifar10n(path)
    wrong = {key: int((row != labels["clean"]).sum()) for key, row in labels.items()}
    assert wrong == {"clean": 0, "aggre": 4505, "worst": 20104, "random1": 8617, "random2": 9061, "random3": 8820}
    assert labels["clean"].bincount().tolist() == [5000] * 10


class Malice:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch harm"),
        (exec, "open('harm', 'w')"),
        (open, "harm", "w"),
        (np.lib.format.open_memmap, "harm", "w+"),
    ],
)
def test_runs_no_code_of_the_file(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "bad.pt", LABELS | {"worse_label": Malice(*call)})
    with pytest.raises(ValueError, match="is not allowed"):
        load_cifar10n(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "held",
    [
        {key: row for key, row in LABELS.items() if key != "worse_label"},
        LABELS | {"worse_label": np.array([1, 2])},
        LABELS | {"worse_label": np.array([1, 2, 3, 10])},
        LABELS | {"worse_label": np.array([0.0, 1.0, 2.0, 3.0])},
        LABELS | {"worse_label": np.array([0, 1, 2, 3], dtype=">i8")},
        LABELS | {"worse_label": np.array([0, 1, 2, None])},
        LABELS | {"worse_label": [0, 1, 2, 3]},
        {key: row.reshape(2, 2) for key, row in LABELS.items()},
        [1, 2, 3],
    ],
)
def test_another_content_is_refused(tmp_path, held):
    with pytest.raises(ValueError, match=r"other.pt: not the file CIFAR-10_human.pt of CIFAR-10N"):
        load_cifar10n(write(tmp_path / "other.pt", held))


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(FileNotFoundError, match=r"file.pt: no such file; .*github.com/UCSC-REAL/cifar-10-100n"):
        load_cifar10n(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not the file"):
        load_cifar10n(path)
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="not the file"):
        load_cifar10n(path)
