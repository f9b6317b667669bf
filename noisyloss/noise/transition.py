"""Transition matrices: float64 arrays with ``T[i, j] = P(noisy = j | clean = i)``, so every row sums to 1.

``noise_rate`` is always the probability that a label *changes*. In asymmetric noise only the classes of the mapping
change: CIFAR-10's mapping holds 5 of its 10 classes, so ``noise_rate=0.4`` corrupts 20 % of all labels.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = [
    "CIFAR10_MAPPING",
    "MNIST_MAPPING",
    "asymmetric_matrix",
    "cifar100_mapping",
    "pairflip_matrix",
    "symmetric_matrix",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]

CIFAR10_MAPPING: Final[Mapping[int, int]] = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
"""Truck → automobile, bird → airplane, cat ↔ dog, deer → horse (Patrini et al., 2017), in the published order."""

MNIST_MAPPING: Final[Mapping[int, int]] = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
"""7 → 1, 2 → 7, 5 ↔ 6, 3 → 8 (Patrini et al., 2017)."""


def cifar100_mapping() -> dict[int, int]:
    """Each class of CIFAR-100 to the next one in its group of five consecutive ids, cyclically.

    The groups are consecutive *fine* ids (0-4, 5-9, …), as in the published experiments, not CIFAR-100's superclasses.

    Returns:
        A dict of 100 classes for :func:`asymmetric_matrix`.

    Examples:
        >>> mapping = cifar100_mapping()
        >>> [mapping[i] for i in range(10)]
        [1, 2, 3, 4, 0, 6, 7, 8, 9, 5]
    """
    return {i: i - i % 5 + (i + 1) % 5 for i in range(100)}


def symmetric_matrix(num_classes: int, noise_rate: float) -> FloatArray:
    """Symmetric (uniform) noise: a label turns into each *other* class with probability ``noise_rate / (C - 1)``.

    ``T[i, i] = 1 - noise_rate`` and ``T[i, j] = noise_rate / (C - 1)`` elsewhere. Some papers redraw the label from
    *all* C classes, the true one included, so that fewer labels change than they say; for their rate η write
    ``symmetric_matrix(C, η * (C - 1) / C)``.

    Args:
        num_classes: the number C of classes, at least 2.
        noise_rate: the probability that a label changes, in [0, 1].

    Returns:
        A float64 array of shape (C, C), each row summing to 1.

    Raises:
        TypeError: ``num_classes`` is not an integer, or ``noise_rate`` not a real number.
        ValueError: either is out of range, or ``noise_rate`` is NaN.

    Examples:
        >>> symmetric_matrix(3, 0.4)
        array([[0.6, 0.2, 0.2],
               [0.2, 0.6, 0.2],
               [0.2, 0.2, 0.6]])

    References:
        Ghosh, Kumar and Sastry, *Robust Loss Functions under Label Noise for Deep Neural Networks*, AAAI 2017.
    """
    num_classes, noise_rate = _check_num_classes(num_classes), _check_noise_rate(noise_rate)
    T = np.full((num_classes, num_classes), noise_rate / (num_classes - 1))
    np.fill_diagonal(T, 1 - noise_rate)
    return T


def pairflip_matrix(num_classes: int, noise_rate: float) -> FloatArray:
    """Pair-flip noise: class i turns into the next class, (i + 1) mod C, with probability ``noise_rate``.

    Args:
        num_classes: the number C of classes, at least 2.
        noise_rate: the probability that a label changes, in [0, 1].

    Returns:
        A float64 array of shape (C, C), each row summing to 1.

    Raises:
        TypeError: ``num_classes`` is not an integer, or ``noise_rate`` not a real number.
        ValueError: either is out of range, or ``noise_rate`` is NaN.

    Examples:
        >>> pairflip_matrix(3, 0.25)
        array([[0.75, 0.25, 0.  ],
               [0.  , 0.75, 0.25],
               [0.25, 0.  , 0.75]])

    References:
        Han et al., *Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels*, NeurIPS 2018.
    """
    num_classes = _check_num_classes(num_classes)
    return asymmetric_matrix(num_classes, noise_rate, {i: (i + 1) % num_classes for i in range(num_classes)})


def asymmetric_matrix(
    num_classes: int, noise_rate: float, mapping: Mapping[int, int], *, sequential: bool = False
) -> FloatArray:
    """Asymmetric (class-dependent) noise: class i turns into ``mapping[i]`` with probability ``noise_rate``.

    ``T[i, mapping[i]] = noise_rate`` and ``T[i, i] = 1 - noise_rate``; a class that is not in the mapping stays clean.

    With ``sequential=True`` the mapping's entries act one after the other, in its order, each on the labels that those
    before it have left: T is the product of the one-entry matrices. The published CIFAR-10 code of APL and of the
    asymmetric losses draws its noise that way, so cats that have just become dogs (3 → 5) can turn back (5 → 3): a cat
    is mislabelled with probability η(1 - η) only, at rate η, and of all labels (5η - η²)/10 are wrong instead of η/2
    (18.4 % for η = 0.4). Accuracies under the two kinds are not comparable.

    That code leaves to chance *how many* cats turn back (800 ± 19 of 5000 for η = 0.4). The exact draw of
    :func:`~noisyloss.noise.corrupt` takes the expected number: the noisy labels of each class are as many as in that
    code, and the overall rate is exactly the one above.

    Args:
        num_classes: the number C of classes, at least 2.
        noise_rate: the probability that a label of a mapped class changes, in [0, 1].
        mapping: ``{from: to}``, such as :data:`CIFAR10_MAPPING`, :data:`MNIST_MAPPING` or :func:`cifar100_mapping`.
        sequential: let the entries act in sequence, as the code behind published CIFAR-10 numbers does. Default: False,
            every label is drawn from its clean class.

    Returns:
        A float64 array of shape (C, C), each row summing to 1.

    Raises:
        TypeError: ``num_classes`` or a class of ``mapping`` is not an integer, ``noise_rate`` not a real number, or
            ``mapping`` not a mapping.
        ValueError: one of them is out of range, ``noise_rate`` is NaN, or a class is mapped to itself.

    Examples:
        >>> asymmetric_matrix(3, 0.4, {0: 1, 1: 0})
        array([[0.6, 0.4, 0. ],
               [0.4, 0.6, 0. ],
               [0. , 0. , 1. ]])
        >>> asymmetric_matrix(3, 0.4, {0: 1, 1: 0}, sequential=True)
        array([[0.76, 0.24, 0.  ],
               [0.4 , 0.6 , 0.  ],
               [0.  , 0.  , 1.  ]])

    References:
        Patrini et al., *Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach*, CVPR 2017;
        sequential: the code of Ma et al., *Normalized Loss Functions for Deep Learning with Noisy Labels*, ICML 2020.
    """
    num_classes, noise_rate = _check_num_classes(num_classes), _check_noise_rate(noise_rate)
    T = np.eye(num_classes)
    for source, to in _check_mapping(mapping, num_classes).items():
        # Rows whose labels now carry `source`: all of them in sequence, else the clean class alone.
        rows = slice(None) if sequential else source
        T[rows, to] += noise_rate * T[rows, source]
        T[rows, source] *= 1 - noise_rate
    return T


def _check_num_classes(num_classes: int) -> int:
    if not isinstance(num_classes, numbers.Integral) or isinstance(num_classes, bool):
        raise TypeError(f"num_classes must be an integer, but got {num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, but got {num_classes}")
    return int(num_classes)


def _check_noise_rate(noise_rate: float, name: str = "noise_rate") -> float:
    if not isinstance(noise_rate, numbers.Real) or isinstance(noise_rate, bool):
        raise TypeError(f"{name} must be a real number, but got {noise_rate!r}")
    if not 0 <= noise_rate <= 1:
        raise ValueError(f"{name} must be in [0, 1], but got {noise_rate}")
    return float(noise_rate)


def _check_mapping(mapping: Mapping[int, int], num_classes: int) -> Mapping[int, int]:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must be a dict {{from: to}} of classes, but got {mapping!r}")
    for source, to in mapping.items():
        for label in (source, to):
            if not isinstance(label, numbers.Integral) or isinstance(label, bool):
                raise TypeError(f"mapping must hold integer classes, but got {source!r}: {to!r}")
            if not 0 <= label < num_classes:
                raise ValueError(f"mapping must hold classes in [0, {num_classes - 1}], but got {source}: {to}")
        if source == to:
            raise ValueError(f"mapping must send a class to another class, but got {source}: {to}")
    return mapping


def _as_array(value: npt.ArrayLike | Tensor, name: str) -> npt.NDArray[Any]:
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must not be ragged, but its lists differ in length") from error


def _check_matrix(matrix: npt.ArrayLike | Tensor) -> tuple[FloatArray, float]:
    """Return the matrix as float64 with rows that sum to 1, and the relative precision it came in."""
    given = _as_array(matrix, "matrix")
    if given.dtype.kind not in "biuf":
        raise TypeError(f"matrix must hold real numbers, but got dtype {given.dtype}")
    if given.ndim != 2 or given.shape[0] != given.shape[1] or len(given) < 2:
        raise ValueError(f"matrix must be square, with at least 2 classes, but got shape {given.shape}")
    T = given.astype(np.float64)
    if not (np.isfinite(T).all() and (T >= 0).all()):
        worst = T[~(np.isfinite(T) & (T >= 0))][0]
        raise ValueError(f"matrix must hold finite probabilities of at least 0, but got {worst}")
    # fsum is exact, so that the sums, and with them the labels, are the same on every platform.
    sums = np.array([math.fsum(row) for row in T])
    if (abs(sums - 1) > 1e-6).any():
        row = int(abs(sums - 1).argmax())
        raise ValueError(f"matrix must be row-stochastic, every row summing to 1, but row {row} sums to {sums[row]}")
    return T / sums[:, None], float(np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps)
