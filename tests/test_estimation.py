"""Estimates of the noise, by hand, on simulated predictions, and on digits with noise that is known."""

from __future__ import annotations

import functools
import itertools
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from noisyloss import CELoss, ForwardCorrection
from noisyloss.noise import (
    MNIST_MAPPING,
    asymmetric_matrix,
    corrupt,
    estimate_noise_rate,
    estimate_transition,
    symmetric_matrix,
)

NOISES = {
    "clean": symmetric_matrix(10, 0.0),
    "symmetric 0.2": symmetric_matrix(10, 0.2),
    "symmetric 0.4": symmetric_matrix(10, 0.4),
    "asymmetric 0.4": asymmetric_matrix(10, 0.4, MNIST_MAPPING),
}


@functools.cache
def noisy_digits(noise, strength=1.0):
    """Digits with known noise, and what a regression on the noisy labels predicts out of fold."""
    inputs, clean = load_digits(return_X_y=True)
    inputs = inputs / 16 - 0.5
    noisy = corrupt(clean, NOISES[noise], generator=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = LogisticRegression(C=strength, max_iter=200)
    return inputs, clean, noisy, cross_val_predict(model, inputs, noisy, cv=folds, method="predict_proba")


@pytest.mark.parametrize("noise", NOISES)
def test_digits_within_five_points(noise):
    matrix, (_, clean, noisy, probabilities) = NOISES[noise], noisy_digits(noise)
    estimate = estimate_transition(probabilities, noisy)
    assert abs(np.diag(estimate) - np.diag(matrix)).mean() < 0.05
    assert abs(estimate - matrix).sum(1).mean() / 2 < 0.1  # total variation, of about 90 labels a row
    assert abs(estimate_noise_rate(probabilities, noisy) - (noisy != clean).mean()) < 0.05


@pytest.mark.parametrize("noise", NOISES)
def test_counting_the_labels_of_anchors_beats_trusting_their_probabilities(noise):
    matrix, (_, _, noisy, probabilities) = NOISES[noise], noisy_digits(noise)
    counted, trusted = estimate_transition(probabilities, noisy), estimate_transition(probabilities)
    assert abs(counted - matrix).sum() < abs(trusted - matrix).sum()


def confident_noise_rate(probabilities, labels):
    """Northcutt et al., 2021: a sample belongs to the likeliest class at or above that class's mean self-confidence."""
    c = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == k, k].mean() for k in range(c)])
    above = np.where(probabilities >= thresholds, probabilities, -1)
    joint = np.zeros((c, c))
    counted = above.max(1) >= 0
    np.add.at(joint, (labels[counted], above.argmax(1)[counted]), 1)
    joint *= np.bincount(labels, minlength=c)[:, None] / joint.sum(1, keepdims=True)
    return 1 - np.trace(joint) / joint.sum()


def test_the_rate_is_nearer_than_that_of_confident_learning_on_average():
    ours, theirs = [], []
    for noise, strength in itertools.product(NOISES, (0.01, 0.1, 1.0)):
        _, clean, noisy, probabilities = noisy_digits(noise, strength)
        for errors, estimate in ((ours, estimate_noise_rate), (theirs, confident_noise_rate)):
            errors.append(abs(estimate(probabilities, noisy) - (noisy != clean).mean()))
    assert sum(ours) < sum(theirs)


def test_forward_correction_with_the_estimate_beats_cross_entropy():
    inputs, clean, noisy, probabilities = noisy_digits("asymmetric 0.4")
    estimate = estimate_transition(probabilities, noisy)
    x, y = torch.tensor(inputs, dtype=torch.float32), torch.tensor(noisy)
    train = torch.arange(len(x)) % 3 > 0
    accuracies = []
    for criterion in (CELoss(), ForwardCorrection(estimate)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            criterion(model(x[train]), y[train]).backward()
            optimizer.step()
        predicted = model(x[~train]).argmax(1)
        accuracies.append((predicted == torch.tensor(clean)[~train]).float().mean().item())
    assert accuracies[1] > accuracies[0] + 0.02


def test_perfect_predictions_give_the_true_matrix():
    matrix = asymmetric_matrix(4, 0.25, {0: 1, 2: 3})
    clean = np.repeat(np.arange(4), 400)
    noisy = corrupt(clean, matrix, generator=0)
    probabilities = matrix[clean]
    np.testing.assert_allclose(estimate_transition(probabilities, percentile=None), matrix, atol=1e-12)
    rng = np.random.default_rng(0)
    jittered = probabilities + 1e-3 * rng.random(probabilities.shape)
    jittered /= jittered.sum(1, keepdims=True)
    estimate = estimate_transition(jittered, noisy)
    np.testing.assert_allclose(estimate, matrix, atol=0.08)  # 100 to 250 anchors a class
    assert estimate_noise_rate(jittered, noisy) == pytest.approx((noisy != clean).mean(), abs=0.03)


def test_the_anchor_is_the_largest_below_the_percentile():
    """Of 100 numbers, the 97th percentile, taken upwards, is the 98th smallest."""
    p = np.linspace(0.01, 0.99, 100)
    probabilities = np.stack([p, 1 - p], 1)
    estimate = estimate_transition(probabilities)
    np.testing.assert_allclose(estimate, [[p[96], 1 - p[96]], [p[3], 1 - p[3]]])
    assert estimate_transition(probabilities, percentile=None)[0, 0] == 0.99
    assert estimate_transition(np.full((5, 2), 0.5)).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_every_kind_of_array_is_read():
    probabilities = [[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]]
    labels = [0, 1, 1]
    expected = estimate_transition(probabilities, labels)
    for kind in (np.array, torch.tensor):
        assert np.array_equal(estimate_transition(kind(probabilities), kind(labels)), expected)
        assert estimate_noise_rate(kind(probabilities), kind(labels)) == estimate_noise_rate(probabilities, labels)
    assert np.array_equal(estimate_transition(torch.tensor(probabilities).bfloat16(), labels), expected)
    ForwardCorrection(expected)


P = [[0.75, 0.25], [0.25, 0.75]]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: estimate_transition([["a"]]), TypeError, "probabilities must hold real numbers, but got dtype"),
        (lambda: estimate_transition([0.5, 0.5]), ValueError, "probabilities must have shape (N, C)"),
        (lambda: estimate_transition([[1.0]]), ValueError, "probabilities must have shape (N, C)"),
        (lambda: estimate_transition([[2.0, -1.0]]), ValueError, "probabilities must be at least 0"),
        (lambda: estimate_transition([[2.0, 1.0]]), ValueError, "sums from 3.0 to 3.0 (are these logits?)"),
        (lambda: estimate_transition([[np.nan, 1.0]]), ValueError, "probabilities must be at least 0"),
        (lambda: estimate_transition(P, [0.0, 1.0]), TypeError, "targets must hold integers, but got dtype float64"),
        (lambda: estimate_transition(P, [0]), ValueError, "targets must have shape (2,)"),
        (lambda: estimate_transition(P, [0, 2]), ValueError, "targets must hold classes in [0, 1], but got 0, 2"),
        (lambda: estimate_transition(P, [0, 0]), ValueError, "targets must hold every class of the probabilities"),
        (lambda: estimate_transition(P, [0, 1], share=0), ValueError, "share must be in (0, 1], but got 0"),
        (lambda: estimate_transition(P, [0, 1], share="0.5"), TypeError, "share must be a real number, but got '0.5'"),
        (lambda: estimate_transition(P, percentile=101), ValueError, "percentile must be in (0, 100], but got 101"),
        (lambda: estimate_noise_rate(P, [0, 0]), ValueError, "but got none of class 1"),
    ],
)
def test_message(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()
