"""What a network's predictions tell of the noise: the transition matrix, and the share of wrong labels."""

import math
import numbers
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisyloss.noise.transition import FloatArray, _as_array

__all__ = ["estimate_noise_rate", "estimate_transition"]


def estimate_transition(
    probabilities: npt.ArrayLike | Tensor,
    targets: npt.ArrayLike | Tensor | None = None,
    *,
    share: float = 0.5,
    percentile: float | None = 97.0,
) -> FloatArray:
    """Estimate the transition matrix from the predictions of a network that was trained on the noisy labels.

    The predictions must be *out of sample*, such as those of cross-validation: on its own training samples a network
    predicts the labels that it has memorised.

    Both estimates go by anchors, samples that surely belong to a class. *With targets*, the noisy labels, the anchors
    of a class are the samples with its highest probabilities, half as many as carry its label, and its row holds the
    shares of their labels. It asks of the probabilities only their order. *Without targets* it is the published
    estimate: a class has one anchor, the sample with its highest probability once the outliers above a percentile are
    left out, and its row is the prediction there. That is as right as the probabilities are; on digits under a
    regularised model it is far off, where the other is within a few points.

    Args:
        probabilities: the predicted probabilities of the noisy labels, of shape (N, C); a tensor or anything that NumPy
            reads as an array.
        targets: the noisy labels, class indices of shape (N). Default: None.
        share: with targets, the number of a class's anchors as a share of its labels, in (0, 1]. Fewer anchors are
            purer, more of them count better. Default: 0.5.
        percentile: without targets, probabilities from this percentile of a class's on are left out, in (0, 100].
            None: none are. Default: 97, the official code's (None on CIFAR-100).

    Returns:
        A float64 array of shape (C, C), each row summing to 1; ``T[i, j]`` estimates P(noisy = j | clean = i).

    Raises:
        TypeError: ``probabilities`` does not hold real numbers, ``targets`` no integers, or ``share`` or ``percentile``
            is no number.
        ValueError: the probabilities do not sum to 1, a shape does not fit, a label is out of range, a class has no
            label, or ``share`` or ``percentile`` is out of range.

    Examples:
        >>> probabilities = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]
        >>> estimate_transition(probabilities, targets=[0, 1, 0, 1, 1, 0], share=1.0)
        array([[0.66666667, 0.33333333],
               [0.33333333, 0.66666667]])
        >>> estimate_transition(probabilities, percentile=None)
        array([[0.9, 0.1],
               [0.2, 0.8]])

    References:
        Patrini et al., *Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach*, CVPR 2017. To
        count the labels of the anchors is this package's choice.
    """
    p = _check_probabilities(probabilities)
    share = _check_between("share", share, 0, 1)
    if percentile is not None:
        percentile = _check_between("percentile", percentile, 0, 100)
    if targets is None:
        T = np.stack([p[_anchor(column, percentile)] for column in p.T])
    else:
        labels = _check_labels(targets, p)
        counts = np.bincount(labels, minlength=p.shape[1])
        T = np.stack(
            [
                np.bincount(labels[np.argsort(-column, kind="stable")[: math.ceil(share * n)]], minlength=len(counts))
                for column, n in zip(p.T, counts, strict=True)
            ]
        ).astype(np.float64)
    estimate: FloatArray = T / T.sum(1, keepdims=True)
    return estimate


def estimate_noise_rate(
    probabilities: npt.ArrayLike | Tensor, targets: npt.ArrayLike | Tensor, *, share: float = 0.5
) -> float:
    """Estimate the share of wrong labels from out-of-sample predictions.

    It is ``1 - sum_i prior[i] * T[i, i]``, where T is :func:`estimate_transition` with these targets and ``prior`` the
    clean shares of the classes, for which ``prior @ T`` comes closest to the shares of the labels.

    In the tests on digits it is nearer to the truth, on average, than counting with class thresholds (confident
    learning, Northcutt et al., JAIR 2021), which takes more of the network's own errors for wrong labels. It still errs
    upwards where the network is bad even at its most confident predictions.

    Args:
        probabilities: see :func:`estimate_transition`.
        targets: the noisy labels, class indices of shape (N).
        share: see :func:`estimate_transition`. Default: 0.5.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError: see :func:`estimate_transition`.
        ValueError: see :func:`estimate_transition`.

    Examples:
        >>> probabilities = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]
        >>> round(estimate_noise_rate(probabilities, targets=[0, 1, 0, 1, 1, 0], share=1.0), 4)
        0.3333
    """
    T = estimate_transition(probabilities, targets, share=share)
    labels = _as_array(targets, "targets")
    shares = np.bincount(labels.ravel(), minlength=len(T)) / labels.size
    prior = np.linalg.lstsq(T.T, shares, rcond=None)[0].clip(min=0)
    return float(1 - prior @ np.diag(T) / prior.sum())


def _anchor(column: FloatArray, percentile: float | None) -> int:
    """Return the place of the largest number below the percentile; of the largest, if there is none below."""
    if percentile is not None:
        below = column < np.percentile(column, percentile, method="higher")
        column = np.where(below, column, -1.0) if below.any() else column
    return int(column.argmax())


def _check_probabilities(probabilities: npt.ArrayLike | Tensor) -> FloatArray:
    if isinstance(probabilities, Tensor) and probabilities.is_floating_point():
        probabilities = probabilities.to(torch.float64)  # NumPy has no bfloat16
    given = _as_array(probabilities, "probabilities")
    if given.dtype.kind not in "biuf":
        raise TypeError(f"probabilities must hold real numbers, but got dtype {given.dtype}")
    if given.ndim != 2 or len(given) < 1 or given.shape[1] < 2:
        raise ValueError(f"probabilities must have shape (N, C), with at least 2 classes, but got {given.shape}")
    p = given.astype(np.float64)
    sums = p.sum(1)
    if not ((p >= 0).all() and (abs(sums - 1) <= 1e-2).all()):
        raise ValueError(
            "probabilities must be at least 0 and every row must sum to 1, but got "
            f"{p.min()} as the least and sums from {sums.min()} to {sums.max()} (are these logits?)"
        )
    normalised: FloatArray = p / sums[:, None]
    return normalised


def _check_labels(targets: npt.ArrayLike | Tensor, p: FloatArray) -> npt.NDArray[np.int64]:
    given = _as_array(targets, "targets")
    if given.dtype.kind not in "iu":
        raise TypeError(f"targets must hold integers, but got dtype {given.dtype}")
    if given.shape != p.shape[:1]:
        raise ValueError(
            f"targets must have shape ({len(p)},), one label a row of probabilities, but got {given.shape}"
        )
    labels = given.astype(np.int64)
    if labels.min() < 0 or labels.max() >= p.shape[1]:
        raise ValueError(f"targets must hold classes in [0, {p.shape[1] - 1}], but got {labels.min()}, {labels.max()}")
    missing = np.setdiff1d(np.arange(p.shape[1]), labels)
    if len(missing):
        raise ValueError(f"targets must hold every class of the probabilities, but got none of class {missing[0]}")
    return labels


def _check_between(name: str, value: Any, least: float, most: float) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a real number, but got {value!r}")
    if not least < float(value) <= most:
        raise ValueError(f"{name} must be in ({least:g}, {most:g}], but got {value}")
    return float(value)
