"""Noisy labels drawn by a transition matrix: of arrays (:func:`corrupt`) and of datasets (:class:`NoisyLabels`).

All randomness comes from ``torch.rand`` (float64) and ``torch.randperm`` on a CPU generator, and no result depends on
the order of a floating-point sum, so a seed gives the same labels on every platform.
"""

import math
import numbers
import operator
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from noisyloss.noise.transition import FloatArray, _as_array, _check_matrix

__all__ = ["NoisyLabels", "corrupt"]

Labels = TypeVar("Labels", list[int], npt.NDArray[Any], Tensor)
IntArray = npt.NDArray[np.int64]


def corrupt(
    targets: Labels, matrix: npt.ArrayLike | Tensor, *, generator: torch.Generator | int, exact: bool = True
) -> Labels:
    """Draw noisy labels: label ``i`` becomes ``j`` with probability ``matrix[i, j]``.

    By default the draw is *exact*, as in most published code: of the n labels of class i, ``floor(rate * n)`` are
    flipped, where ``rate = 1 - matrix[i, i]`` (rounding errors do not count: 1 - 0.9 flips 500 of 5000). Which ones is
    random. They are shared out over the other classes in the row's proportions, to within one label: what is left over
    goes to the largest remainders, at random among equals. With ``exact=False`` every label is drawn on its own, so the
    counts vary; the published code does this for asymmetric noise on MNIST and CIFAR-100.

    Args:
        targets: clean class indices: a list of ints, or a NumPy array or tensor of any integer dtype, shape and device.
        matrix: row-stochastic, ``matrix[i, j] = P(noisy = j | clean = i)``, such as
            :func:`~noisyloss.noise.symmetric_matrix` makes; a tensor or anything that NumPy reads as an array, (C, C).
        generator: a CPU ``torch.Generator``, which advances, or an int, which stands for a new generator with that
            seed. The global random state is neither read nor changed.
        exact: flip an exact number of labels per class, or draw each label independently. Default: True.

    Returns:
        A new object of the type, dtype, shape and device of ``targets``, which is left as it is, with the noisy labels.

    Raises:
        TypeError: ``targets`` is no list, array or tensor of integers, ``matrix`` does not hold real numbers, or
            ``generator`` is neither a generator nor an int.
        ValueError: a label lies outside the classes of the matrix (drop labels such as ``ignore_index`` first), the
            matrix is not square or not row-stochastic (to 1e-6), or the generator is not on the CPU.

    Examples:
        >>> from noisyloss.noise import corrupt, symmetric_matrix
        >>> clean = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
        >>> corrupt(clean, symmetric_matrix(3, 0.4), generator=0)
        [0, 0, 0, 2, 1, 0, 1, 1, 2, 1, 2, 2, 1, 2, 0]

    References:
        Ma et al., *Normalized Loss Functions for Deep Learning with Noisy Labels*, ICML 2020: exact counts per class.
        Their code draws the new class at random; equal numbers for each, as here, are the choice of Ye et al., *Active
        Negative Loss Functions for Learning with Noisy Labels*, NeurIPS 2023.
    """
    T, precision = _check_matrix(matrix)
    clean = _check_labels(targets, num_classes=len(T))
    draw = _check_generator(generator)
    flat = clean.ravel()
    noisy = (_draw_exact(flat, T, precision, draw) if exact else _draw_iid(flat, T, draw)).reshape(clean.shape)
    return _in_the_form_of(targets, noisy)


def _in_the_form_of(targets: Labels, noisy: IntArray) -> Labels:
    if isinstance(targets, Tensor):
        return torch.from_numpy(noisy).to(targets.device, targets.dtype)
    if isinstance(targets, np.ndarray):
        return noisy.astype(targets.dtype)
    return cast("Labels", noisy.tolist())


def _draw_exact(clean: IntArray, T: FloatArray, precision: float, generator: torch.Generator) -> IntArray:
    noisy = clean.copy()
    order = torch.randperm(len(clean), generator=generator).numpy()
    order = order[np.argsort(clean[order], kind="stable")]  # the samples class by class, at random within each
    members = np.split(order, np.bincount(clean, minlength=len(T)).cumsum()[:-1])
    for label, (row, samples) in enumerate(zip(T, members, strict=True)):
        n = len(samples)
        # 1 - 0.9 is a little less than 0.1, and a float32 matrix a little off anything: neither may cost a flip.
        flips = math.floor((1 - row[label]) * n + min(max(1e-9, n * precision), 0.5))
        tie_break = torch.randperm(len(T), generator=generator).numpy()
        if flips:
            counts = _apportion(flips, np.where(np.arange(len(T)) == label, 0.0, row), tie_break)
            noisy[samples[:flips]] = np.repeat(np.arange(len(T)), counts)
    return noisy


def _apportion(total: int, weights: FloatArray, tie_break: IntArray) -> IntArray:
    """Split ``total`` into integers proportional to the weights: the largest-remainder method."""
    quota = total * weights / math.fsum(weights)
    counts = np.floor(quota).astype(np.int64)
    remainder = np.round(quota - counts, 9)  # so that rounding errors neither break ties nor cost a whole label
    counts[np.lexsort((tie_break, -remainder))[: total - counts.sum()]] += 1
    return counts


def _draw_iid(clean: IntArray, T: FloatArray, generator: torch.Generator) -> IntArray:
    noisy = clean.copy()
    u = torch.rand(len(clean), dtype=torch.float64, generator=generator).numpy()
    cdf = T.cumsum(axis=1)
    cdf /= cdf[:, -1:]  # ends in exactly 1, above every u
    for label in np.unique(clean):
        samples = np.flatnonzero(clean == label)
        noisy[samples] = cdf[label].searchsorted(u[samples], side="right")
    return noisy


class NoisyLabels(Dataset[Any]):
    """A dataset whose items carry noisy labels: wraps any map-style dataset of tuples ``(input, label, ...)``.

    The labels are drawn once, at construction, by :func:`corrupt`; they do not change between epochs or workers. The
    rest of an item stays as it is. A label keeps its type: int, NumPy integer or integer tensor.

    Args:
        dataset: a map-style dataset. Its items are tuples, named tuples or lists; item[1], the label, is replaced.
        matrix: row-stochastic, ``matrix[i, j] = P(noisy = j | clean = i)``, as in :func:`corrupt`.
        generator: a CPU ``torch.Generator`` or an int seed, as in :func:`corrupt`.
        targets: the clean labels, one per item. Default: ``dataset.targets`` if there is one (a ``target_transform`` is
            then passed over), else one pass over the dataset reads every item[1] (and runs every transform: give
            ``targets`` if that is slow or random).
        exact: flip an exact number of labels per class, or draw each label independently, as in :func:`corrupt`.
            Default: True.

    Attributes:
        dataset: the wrapped dataset.
        clean_targets: int64 tensor of shape (N,), the labels before.
        targets: int64 tensor of shape (N,), the labels after.
        noise_mask: bool tensor of shape (N,), True where the two differ.

    Raises:
        TypeError: the dataset is not map-style, an item is no tuple or list of at least two or its label no class
            index (when the item is read), or an argument has the wrong type.
        ValueError: the clean labels are not one per item, or as in :func:`corrupt`.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from noisyloss.noise import NoisyLabels, symmetric_matrix
        >>> clean = TensorDataset(torch.zeros(10, 8), torch.arange(10) % 2)
        >>> noisy = NoisyLabels(clean, symmetric_matrix(2, 0.4), generator=0)
        >>> noisy.targets
        tensor([1, 0, 0, 1, 1, 1, 0, 0, 0, 1])
        >>> noisy.noise_mask.sum()
        tensor(4)
        >>> x, y = noisy[0]
        >>> y
        tensor(1)

    References:
        Ma et al., *Normalized Loss Functions for Deep Learning with Noisy Labels*, ICML 2020: the protocol.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        matrix: npt.ArrayLike | Tensor,
        *,
        generator: torch.Generator | int,
        targets: list[int] | npt.NDArray[Any] | Tensor | None = None,
        exact: bool = True,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"dataset must be map-style, with __getitem__ and __len__, but got {type(dataset).__name__}; "
                "corrupt the labels of a stream where it is made, with noisyloss.noise.corrupt"
            )
        self.dataset = dataset
        self.clean_targets = torch.from_numpy(_clean_labels(dataset, targets))
        self.targets = corrupt(self.clean_targets, matrix, generator=generator, exact=exact)
        self.noise_mask = self.targets != self.clean_targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Any) -> Any:
        item = self.dataset[index]
        label = _in_the_type_of(_label_of(item), self.targets[index])
        make = getattr(type(item), "_make", type(item))  # a named tuple takes its fields one by one, or through _make
        return make([item[0], label, *item[2:]])


def _label_of(item: Any) -> Any:
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[1]
    raise TypeError(
        f"dataset must give tuples or lists (input, label, ...), but an item is a {type(item).__name__}"
        f"{f' of length {len(item)}' if isinstance(item, (tuple, list)) else ''}; "
        "wrap it in a dataset that gives such tuples"
    )


def _in_the_type_of(old: Any, new: Tensor) -> Any:
    if not isinstance(old, (Tensor, np.ndarray, np.generic)):
        return new.tolist()
    if math.prod(old.shape) != new.numel() or not _is_integer(old):
        raise TypeError(
            f"item[1] must be a class index, but got {old.dtype} of shape {tuple(old.shape)}; "
            "give the dataset integer labels (for one-hot labels, their argmax)"
        )
    if isinstance(old, Tensor):
        return new.to(old.device, old.dtype, copy=True).view(old.shape)
    return new.numpy().astype(old.dtype).reshape(old.shape)[()]  # [()] makes a scalar of a 0-d array


def _clean_labels(dataset: Any, targets: Any) -> IntArray:
    """Return the labels from the first source that has them, as a new array."""
    name = "targets"
    if targets is None:
        name, targets = "dataset.targets, unless targets= is given,", getattr(dataset, "targets", None)
    if targets is None:
        name, targets = "the labels of dataset", []
        for i in range(len(dataset)):
            label = _label_of(dataset[i])
            try:
                targets.append(operator.index(label))
            except TypeError as error:
                raise TypeError(
                    f"item[1] must be a class index, but item {i} has {label!r}; give class indices as targets="
                ) from error
    clean = _check_labels(targets, name=name)
    if clean.shape != (len(dataset),):
        raise ValueError(f"{name} must hold one label per item, shape ({len(dataset)},), but got shape {clean.shape}")
    return clean


def _is_integer(array: Tensor | npt.NDArray[Any] | np.generic) -> bool:
    if isinstance(array, Tensor):
        return not (array.is_floating_point() or array.is_complex() or array.dtype == torch.bool)
    return array.dtype.kind in "iu"


def _check_labels(targets: Any, *, num_classes: int | None = None, name: str = "targets") -> IntArray:
    """Return the labels as a new int64 array."""
    if not isinstance(targets, (list, np.ndarray, Tensor)):
        raise TypeError(f"{name} must be a list, NumPy array or tensor of integers, but got {type(targets).__name__}")
    labels = _as_array(targets, name)
    if labels.size == 0 and isinstance(targets, list):  # which NumPy takes for floats
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, but got dtype {labels.dtype}")
    if num_classes is not None:
        outside = (labels < 0) | (labels >= num_classes)
        if outside.any():
            raise ValueError(
                f"{name} must be in [0, {num_classes - 1}], as the matrix has {num_classes} classes, "
                f"but got {labels[outside][0]}"
            )
        if not isinstance(targets, list) and num_classes - 1 > np.iinfo(labels.dtype).max:
            raise ValueError(f"{name} must have a dtype that holds {num_classes} classes, but got {labels.dtype}")
    return np.array(labels, dtype=np.int64)


def _check_generator(generator: torch.Generator | int) -> torch.Generator:
    if isinstance(generator, torch.Generator):
        if generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, but got one on {generator.device}")
        return generator
    if not isinstance(generator, numbers.Integral) or isinstance(generator, bool):
        raise TypeError(f"generator must be a torch.Generator or an int seed, but got {generator!r}")
    if not -(2**63) <= generator < 2**64:
        raise ValueError(f"generator must be a torch.Generator or a seed in [-2**63, 2**64), but got {generator}")
    return torch.Generator().manual_seed(int(generator))
