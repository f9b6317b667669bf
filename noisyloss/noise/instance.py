"""Noise that depends on the input: samples that look alike are mislabelled alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisyloss.noise.labels import Labels, _check_generator, _check_labels, _in_the_form_of
from noisyloss.noise.transition import _as_array, _check_noise_rate, _check_num_classes

__all__ = ["corrupt_by_instance"]


def corrupt_by_instance(
    targets: Labels,
    features: npt.ArrayLike | Tensor,
    noise_rate: float,
    *,
    num_classes: int,
    generator: torch.Generator | int,
    std: float = 0.1,
) -> Labels:
    r"""Draw instance-dependent (part-dependent) noisy labels, by the generator that the literature shares.

    Sample n of class y changes its label with a probability of its own, drawn from the normal distribution
    N(noise_rate, std²) truncated to [0, 1]. What it changes to follows from the input: with one random matrix of
    standard normal numbers for each class, :math:`W_y` of shape (D, C), class :math:`j \ne y` has the probability
    :math:`\mathrm{softmax}_{j \ne y}(x_n W_y)_j`. Samples that look alike are thus mislabelled alike.

    The published code takes ``features`` to be the raw pixels, from 0 to 255. The logits are then so far apart that
    the input decides which wrong label a sample gets, chance only whether it gets it; and, as all pixels are positive,
    most samples of a class get the same few wrong labels. The smaller the features, the more is left to chance.

    Args:
        targets: clean class indices: a list of ints, or a NumPy array or tensor of any integer dtype and device, (N,).
        features: what the noise depends on, such as the images: real numbers, (N, ...); all but the first dimension are
            flattened.
        noise_rate: the mean of the normal distribution, in [0, 1]. The expected share of labels that change is the mean
            of the *truncated* one, which the bounds push inwards if they are near: 0.129 for 0.1, 0.205 for 0.2.
        num_classes: the number C of classes, at least 2.
        generator: a CPU ``torch.Generator``, which advances, or an int, which stands for a new generator with that
            seed. The global random state is neither read nor changed.
        std: the standard deviation of the normal distribution. Default: 0.1. At 0 every label changes with probability
            ``noise_rate``.

    Returns:
        A new object of the type, dtype, shape and device of ``targets``, which is left as it is, with the noisy labels.

    Raises:
        TypeError: ``targets`` does not hold integers, ``features`` no real numbers, or another is no number.
        ValueError: an argument is out of range, or ``features`` does not have one row of finite numbers per target.

    Examples:
        >>> from noisyloss.noise import corrupt_by_instance
        >>> features = [[0.0, 1.0], [0.1, 1.0], [5.0, -2.0], [5.0, -2.1], [0.0, 1.0], [5.0, -2.0]]
        >>> corrupt_by_instance([0, 0, 0, 0, 1, 1], features, 0.6, num_classes=4, generator=5)
        [0, 2, 1, 1, 0, 1]

    References:
        Xia et al., *Part-dependent Label Noise: Towards Instance-dependent Label Noise*, NeurIPS 2020, and their code.
    """
    num_classes, noise_rate = _check_num_classes(num_classes), _check_noise_rate(noise_rate)
    std = _check_noise_rate(std, "std")
    labels = _check_labels(targets, num_classes=num_classes)
    if labels.ndim != 1:
        raise ValueError(f"targets must be of shape (N,), but got shape {labels.shape}")
    x, clean = _check_features(features, len(labels)), torch.from_numpy(labels)
    draw = _check_generator(generator)

    flipped = _uniform(len(clean), generator=draw) < _rates(len(clean), noise_rate, std, draw)
    u = _uniform(len(clean), generator=draw)
    noisy = clean.clone()
    for label in range(num_classes):
        weight = torch.special.ndtri(_uniform(x.shape[1], num_classes, generator=draw))  # standard normal
        samples = (flipped & (clean == label)).nonzero().squeeze(1)
        logits = x[samples].double() @ weight
        logits[:, label] = -torch.inf
        cdf = logits.softmax(1).cumsum(1)
        noisy[samples] = (cdf / cdf[:, -1:] <= u[samples, None]).sum(1)
    return _in_the_form_of(targets, noisy.numpy())


def _rates(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Draw from the normal distribution truncated to [0, 1], as the quantiles of uniform numbers."""
    u = _uniform(count, generator=generator)
    if not std:
        return torch.full_like(u, mean)
    low, high = torch.special.ndtr(torch.tensor([-mean / std, (1 - mean) / std], dtype=torch.float64))
    rates: Tensor = mean + std * torch.special.ndtri(low + (high - low) * u)
    return rates.clamp(0, 1)


def _uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Return random numbers between 0 and 1, both excluded."""
    return torch.rand(shape, dtype=torch.float64, generator=generator) + 2**-54


def _check_features(features: npt.ArrayLike | Tensor, count: int) -> Tensor:
    """Return the features as a matrix on the CPU, in the type they come in."""
    given: npt.NDArray[Any] = _as_array(features, "features")
    if given.dtype.kind not in "biuf":
        raise TypeError(f"features must hold real numbers, but got dtype {given.dtype}")
    if given.ndim < 2 or len(given) != count or 0 in given.shape[1:]:
        raise ValueError(
            f"features must be of shape (N, ...), a row for each of the {count} targets, but got shape {given.shape}"
        )
    if not np.isfinite(given).all():
        raise ValueError(f"features must be finite, but got {given[~np.isfinite(given)][0]}")
    return torch.from_numpy(np.ascontiguousarray(given.reshape(count, -1)))
