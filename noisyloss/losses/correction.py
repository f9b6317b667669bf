"""Losses corrected by what is known of the labels: a transition matrix, or the shares of the classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from noisyloss._base import PointwiseLoss, RobustLoss, check_number
from noisyloss._log_probs import CLASS_DIM, add_bias, log_probs
from noisyloss.losses.linked import InFront, member
from noisyloss.noise.transition import _as_array, _check_matrix

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Unpack

    from noisyloss._base import Options
    from noisyloss.noise.transition import FloatArray

__all__ = ["BackwardCorrection", "CORES2Loss", "ForwardCorrection", "PeerLoss"]


class _ForItsClasses(RobustLoss):
    """A loss that holds a buffer with an entry, or a row, for each class, so that it knows how many there are."""

    loss: RobustLoss
    held: ClassVar[str] = "matrix"

    def _check(self, input: Tensor, target: Tensor) -> bool:
        is_index = super()._check(input, target)
        held = getattr(self, self.held)
        num_classes = input.shape[min(CLASS_DIM, input.dim() - 1)]
        if held is not None and len(held) != num_classes:
            raise ValueError(f"input: expected {len(held)} classes, as {self.held} has; got {num_classes}")
        return is_index

    def _class_weights(self, num_classes: int) -> list[float]:
        weights = super()._class_weights(num_classes)
        held = getattr(self, self.held)
        if held is not None and len(held) != num_classes:
            raise ValueError(f"num_classes: expected {len(held)}, the classes of {self.held}; got {num_classes}")
        return weights


class ForwardCorrection(_ForItsClasses, InFront):
    r"""Forward correction: any loss of the predicted *noisy* label.

    .. math:: \ell(z, y) = \ell_{loss}(\log T^\top p,\, y)

    :math:`T^\top p` is the distribution of the noisy label if p is that of the clean one. With cross entropy, or any
    other proper loss, the minimiser on noisy labels is therefore the clean p. Predict with the logits as they are.
    :func:`~noisyloss.noise.estimate_transition` estimates T.

    Args:
        matrix: the transition matrix, ``matrix[i, j] = P(noisy = j | clean = i)``, (C, C), as a tensor, whose dtype it
            keeps, or anything that NumPy reads as an array. It is a buffer, saved in the ``state_dict``.
        loss: an id of :func:`list_losses` or a loss without options of its own. Default: ``"ce"``, the paper's.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`. Computed in log space: where the loss is not pointwise or the target not an index, it
        takes memory for N·C·C numbers.

    Bounds: of a pointwise loss, and of a sum of them, those at the least and largest entry of the matrix; of another
    loss its own. Symmetric: where the loss is.

    Raises:
        TypeError: if the matrix does not hold real numbers, or loss is neither an id nor a loss.
        ValueError: if the matrix is not square or not row-stochastic, if it has a column of zeros (a label that cannot
            occur), or if the loss brings its own options.

    Reference:
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach", CVPR 2017.

    Example:
        >>> import torch
        >>> criterion = ForwardCorrection([[0.8, 0.2], [0.4, 0.6]], "mae")
        >>> criterion(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # 1 - (0.8 + 0.4) / 2
        tensor(0.4000)
    """

    matrix: Tensor

    def __init__(
        self, matrix: npt.ArrayLike | Tensor, loss: str | RobustLoss = "ce", **options: Unpack[Options]
    ) -> None:
        super().__init__(loss, **options)
        T, _ = _check_matrix(matrix)
        if not T.any(0).all():
            column = int(T.any(0).argmin())
            raise ValueError(f"matrix: expected labels of every class; got column {column} with zeros alone")
        self.register_buffer("matrix", _tensor(T, matrix))

    def link(self, input: Tensor) -> Tensor:
        log_p = log_probs(input)
        terms = log_p.movedim(CLASS_DIM, -1).unsqueeze(-1) + self.matrix.to(log_p.dtype).log()
        return terms.logsumexp(-2).movedim(-1, CLASS_DIM)

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        if not isinstance(self.loss, PointwiseLoss):
            return super()._of_index(input, index, bias)
        log_p = log_probs(add_bias(input, index, bias))
        log_T_y = _rows(self.matrix.T.to(log_p.dtype).log(), index)
        return self.loss.f((log_p + log_T_y).logsumexp(CLASS_DIM, keepdim=True))

    def _range(self, num_classes: int) -> tuple[float, float]:
        return self.matrix.min().item(), self.matrix.max().item()


class _Mixed(_ForItsClasses):
    """A loss whose value for a class is a fixed linear combination of another's values for all classes."""

    _plain = False

    def __init__(self, loss: str | RobustLoss, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.loss = member("loss", loss)

    def _coefficients(self, num_classes: int) -> FloatArray:
        """Return M with ``loss(z, k) = sum_j M[k, j] * loss_j``."""
        raise NotImplementedError

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        ranges = [self._combined(row, *self.loss._bounds(num_classes)) for row in self._coefficients(num_classes)]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def _total(self, num_classes: int) -> float | None:
        """Return the factor of ``sum_j loss_j`` in the sum over the classes, if all have the same."""
        factors = self._coefficients(num_classes).sum(0)
        total = round(float(factors.mean()), 12)
        return total if np.allclose(factors, total, rtol=0, atol=1e-9) else None

    def _symmetry_constant(self, num_classes: int) -> float | None:
        total = self._total(num_classes)
        if total == 0:
            return 0.0
        constant = self.loss._symmetry_constant(num_classes)
        return None if total is None or constant is None else total * constant

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        total = self._total(num_classes)
        if bias:
            low, high = self._bounds(num_classes)
            return num_classes * low, num_classes * high
        if total is not None:
            return self._combined(np.array([total]), *self.loss._class_sum_range(num_classes, 0.0))
        return self._combined(self._coefficients(num_classes).sum(0), *self.loss._bounds(num_classes))

    @staticmethod
    def _combined(factors: FloatArray, low: float, high: float) -> tuple[float, float]:
        """Return the range of the sum of the factors times numbers between low and high."""
        ends = [sorted((f * low, f * high)) for f in factors.tolist() if f]
        return sum(end[0] for end in ends), sum(end[1] for end in ends)


class BackwardCorrection(_Mixed):
    r"""Backward correction: the combination of a loss's values whose expectation over noisy labels is the clean loss.

    .. math:: \ell(z, y) = \sum_j (T^{-1})_{yj}\, \ell_{loss}(z, j)

    It is unbiased for every loss: :math:`\sum_j T_{ij}\, \ell(z, j) = \ell_{loss}(z, i)`. The price is variance. Some
    factors are negative, so it has no lower bound where the loss has no upper one: with cross entropy a network that
    can memorise will. Prefer a bounded loss, or :class:`ForwardCorrection`.

    Args:
        matrix: the transition matrix, as of :class:`ForwardCorrection`. It and its inverse are buffers.
        loss: an id of :func:`list_losses` or a loss without options of its own. Default: ``"ce"``, the paper's (whose
            code bounds it by a clamp of the probabilities at 1e-7).
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: the sums of the loss's ends, each the one that the sign of its factor makes least, or largest; with cross
    entropy (-∞, ∞) unless T is the identity. Symmetric: where the loss is, if the columns of T sum to 1, as those of
    symmetric noise do.

    Raises:
        TypeError: if the matrix does not hold real numbers, or loss is neither an id nor a loss.
        ValueError: if the matrix is not square, not row-stochastic, or singular (a condition number above 1e6), or the
            loss brings its own options.

    Reference:
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach", CVPR 2017.

    Example:
        >>> import torch
        >>> criterion = BackwardCorrection([[0.8, 0.2], [0.2, 0.8]], "mae")  # the inverse: 4/3 and -1/3
        >>> criterion(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # 4/3 * 1/2 - 1/3 * 1/2
        tensor(0.5000)
    """

    matrix: Tensor
    inverse: Tensor

    def __init__(
        self, matrix: npt.ArrayLike | Tensor, loss: str | RobustLoss = "ce", **options: Unpack[Options]
    ) -> None:
        super().__init__(loss, **options)
        T, _ = _check_matrix(matrix)
        condition = float(np.linalg.cond(T))
        if not condition <= 1e6:
            raise ValueError(f"matrix: expected one with an inverse; got a condition number of {condition:.1e}")
        self.register_buffer("matrix", _tensor(T, matrix))
        self.register_buffer("inverse", _tensor(np.linalg.inv(T).astype(np.float64), matrix))

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        values = self.loss._of_all(add_bias(input, index, bias))
        return (_rows(self.inverse.to(values.dtype), index) * values).sum(CLASS_DIM, keepdim=True)

    def _of_all(self, input: Tensor) -> Tensor:
        values = self.loss._of_all(input)
        with torch.autocast(values.device.type, enabled=False):  # which would multiply matrices in half precision
            return (values.movedim(CLASS_DIM, -1) @ self.inverse.T.to(values.dtype)).movedim(-1, CLASS_DIM)

    def _coefficients(self, num_classes: int) -> FloatArray:
        return self.inverse.double().cpu().numpy()


class PeerLoss(_Mixed):
    r"""Peer loss, in expectation: a loss minus what it would be under a label that has nothing to do with the sample.

    .. math:: \ell(z, y) = \ell_{loss}(z, y) - \alpha \sum_j \pi_j\, \ell_{loss}(z, j)

    The paper subtracts the loss of a random sample's prediction under another random sample's label. This is its
    expectation over both where the prior :math:`\pi` holds the shares of the noisy labels, with less variance and no
    second batch. The published runs raise alpha with the epochs, from 0; it may be set at any time. It is unbounded
    below where the loss is not bounded, as cross entropy, so start from a trained network or from alpha = 0.

    Args:
        loss: an id of :func:`list_losses` or a loss without options of its own. Default: ``"ce"``, the paper's.
        alpha: the weight of the peer term, at least 0. Default: 1.0, the paper's basic form.
        prior: the shares :math:`\pi` of the classes among the noisy labels, of shape (C), summing to 1: a tensor, whose
            dtype it keeps, or what NumPy reads as an array. It is a buffer. Default: None, uniform.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: the sums of the loss's ends, each the one that the sign of its factor makes least, or largest; with cross
    entropy (-∞, ∞). Symmetric: with a uniform prior where the loss is, and for every loss if alpha = 1: then the values
    sum to 0.

    Raises:
        TypeError: if loss is neither an id nor a loss, alpha is no number, or prior does not hold real numbers.
        ValueError: if alpha is negative, prior is no distribution, or the loss brings its own options.

    Reference:
        Liu & Guo, "Peer Loss Functions: Learning from Noisy Labels without Knowing Noise Rates", ICML 2020.

    Example:
        >>> import torch
        >>> criterion = PeerLoss("mae", alpha=0.5, prior=[0.75, 0.25])
        >>> input = torch.tensor([[0.8, 0.2]]).log()
        >>> criterion(input, torch.tensor([0]))  # 0.2 - 0.5 * (0.75 * 0.2 + 0.25 * 0.8)
        tensor(0.0250)
    """

    prior: Tensor | None
    held = "prior"

    def __init__(
        self,
        loss: str | RobustLoss = "ce",
        alpha: float = 1.0,
        prior: npt.ArrayLike | Tensor | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(loss, **options)
        self.alpha = check_number("alpha", alpha, "alpha >= 0", lambda a: a >= 0)
        self.register_buffer("prior", None if prior is None else _tensor(_check_prior(prior), prior))

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        values = self.loss._of_all(add_bias(input, index, bias))
        return values.gather(CLASS_DIM, index) - self._peer(values)

    def _of_all(self, input: Tensor) -> Tensor:
        values = self.loss._of_all(input)
        return values - self._peer(values)

    def _peer(self, values: Tensor) -> Tensor:
        if self.prior is None:
            return self.alpha * values.mean(CLASS_DIM, keepdim=True)
        prior = self.prior.to(values.dtype).view(-1, *(1,) * (values.dim() - 2))
        return self.alpha * (prior * values).sum(CLASS_DIM, keepdim=True)

    def _coefficients(self, num_classes: int) -> FloatArray:
        uniform = np.full(num_classes, 1 / num_classes)
        prior = uniform if self.prior is None else self.prior.double().cpu().numpy()
        coefficients: FloatArray = np.eye(num_classes) - self.alpha * prior
        return coefficients


class CORES2Loss(PeerLoss):
    r"""The loss of CORES²: cross entropy with a confidence regulariser.

    .. math:: \ell(z, y) = -\log p_y + \beta \sum_k \pi_k \log p_k

    It is :class:`PeerLoss` with cross entropy. The official code keeps beta at 0 for 10 epochs, raises it to 2 in the
    next 30 and keeps it there, ``criterion.beta = 2 * min(max(epoch - 10, 0) / 30, 1)``; it also leaves out samples
    from epoch 31 on (the sieve), which is not part of the loss. It is unbounded below, so beta needs such a schedule.

    Args:
        beta: the weight of the regulariser, at least 0; may be set at any time. Default: 2.0, where the official
            code ends.
        prior: the shares :math:`\pi` of the classes among the noisy labels, as of :class:`PeerLoss`; the official code
            always passes them. Default: None, uniform.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: (-∞, ∞) unless beta = 0. Symmetric: with a uniform prior and beta = 1.

    Raises:
        TypeError: if beta is no number, or prior does not hold real numbers.
        ValueError: if beta is negative, or prior is no distribution.

    Reference:
        Cheng et al., "Learning with Instance-Dependent Label Noise: A Sample Sieve Approach", ICLR 2021.

    Example:
        >>> import torch
        >>> criterion = CORES2Loss(beta=0.5)
        >>> criterion(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))  # 0.1269 - 0.5 * (0.1269 + 2.1269) / 2
        tensor(-0.4365)
    """

    def __init__(
        self, beta: float = 2.0, prior: npt.ArrayLike | Tensor | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__("ce", check_number("beta", beta, "beta >= 0", lambda b: b >= 0), prior, **options)

    @property
    def beta(self) -> float:
        """The weight of the regulariser."""
        return self.alpha

    @beta.setter
    def beta(self, beta: float) -> None:
        self.alpha = beta


def _tensor(values: FloatArray, given: Any) -> Tensor:
    """Return the values in the dtype and on the device of the tensor that was given, else in torch's default."""
    if isinstance(given, Tensor) and given.is_floating_point():
        return torch.from_numpy(values).to(given)
    return torch.tensor(values, dtype=torch.get_default_dtype())


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Return the row of every index, along the class axis."""
    return matrix[index.squeeze(CLASS_DIM)].movedim(-1, CLASS_DIM)


def _check_prior(prior: npt.ArrayLike | Tensor) -> FloatArray:
    given = _as_array(prior, "prior")
    if given.dtype.kind not in "biuf":
        raise TypeError(f"prior: expected real numbers; got dtype {given.dtype}")
    if given.ndim != 1 or len(given) < 2:
        raise ValueError(f"prior: expected shape (C); got {given.shape}")
    shares = given.astype(np.float64)
    if not (np.isfinite(shares).all() and (shares >= 0).all() and abs(math.fsum(shares) - 1) <= 1e-6):
        raise ValueError(f"prior: expected shares of at least 0 that sum to 1; got {shares.tolist()}")
    normalised: FloatArray = shares / shares.sum()
    return normalised
