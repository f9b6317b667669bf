"""What makes any loss symmetric: to divide by its sum over the classes, of it or of its negative, or to subtract it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from noisyloss._base import PointwiseLoss, RobustLoss, check_number, convex_envelope, plain_member
from noisyloss._log_probs import CLASS_DIM, LOG_P, NUM_CLASSES, ClassFunction, is_at_least
from noisyloss.losses.pointwise import LOG_OF_ZERO, CELoss, FocalLoss, GCELoss, MAELoss, RCELoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack

    from noisyloss._base import Options

__all__ = [
    "NCELoss",
    "NFLLoss",
    "NGCELoss",
    "NMAELoss",
    "NNCELoss",
    "NNFLLoss",
    "NRCELoss",
    "Normalized",
    "NormalizedNegative",
    "Symmetrized",
    "UnhingedLoss",
]


class _OfPointwise(RobustLoss):
    """A loss made of a pointwise one."""

    loss: PointwiseLoss

    def __init__(self, loss: PointwiseLoss, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        if not isinstance(loss, PointwiseLoss):
            raise TypeError(f"loss: expected a pointwise loss such as CELoss(); got {loss!r}")
        self.loss = plain_member("loss", loss)

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return 1 where f is affine in p, and its sum over the classes a constant."""
        return math.inf if self.loss._symmetry_constant(num_classes) is None else 1.0


class Normalized(_OfPointwise):
    r"""The normalised form of any pointwise loss f.

    .. math:: \ell(z, y) = \frac{f(p_y)}{\sum_k f(p_k)}

    It sums to 1 over the classes whatever f is, so it is symmetric and robust to symmetric label noise; but it may
    train slowly, which :class:`APLLoss` repairs.

    Args:
        loss: a pointwise loss that is nowhere negative, without options of its own.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: f(p_y) is least, and the rest of the sum largest, at p_y = 1, where the loss is
    :math:`f(1) / (f(1) + (C-1) f(0))`. At p_y = 0 the first is largest and the rest least: by Jensen's inequality at
    least :math:`(C-1) \breve f(1/(C-1))` with :math:`\breve f` the convex envelope of f on [0, 1]. This is attained
    where f is convex (CE, GCE, focal) or concave. Symmetric: yes, K = 1.

    Raises:
        TypeError: if the loss is not pointwise.
        ValueError: if it takes negative values, is zero everywhere, or brings options of its own.

    Reference:
        Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.

    Example:
        >>> import torch
        >>> from noisyloss import GCELoss
        >>> input = torch.tensor([[0.64, 0.36]]).log()
        >>> Normalized(GCELoss(q=0.5))(input, torch.tensor([1]))  # (1 - 0.6) / ((1 - 0.8) + (1 - 0.6))
        tensor(0.6667)
    """

    def __init__(self, loss: PointwiseLoss, **options: Unpack[Options]) -> None:
        super().__init__(loss, **options)
        at_1, at_0 = loss.at([1.0, 0.0])
        if not 0 <= at_1 <= at_0 or at_0 == 0:
            raise ValueError(f"loss: expected values >= 0 that fall as p rises; got {at_0} to {at_1} from {loss!r}")
        self._ends = (at_0, at_1) if loss._symmetry_constant(3) is not None else None  # f is affine in p between them
        self.sums: Sequence[ClassFunction] = (NUM_CLASSES if self._ends else self.loss,)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        total = sums[0]
        if self._ends:  # a constant, and no pass over the classes
            at_0, at_1 = self._ends
            total = (total - 1) * at_0 + at_1
        return self.loss.f(log_p) / total

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        at_1, at_0 = self.loss.at([1.0, 0.0])
        if math.isinf(at_0):
            return 0.0, 1.0
        rest = (num_classes - 1) * convex_envelope(self.loss.at, 1 / (num_classes - 1))
        return at_1 / (at_1 + (num_classes - 1) * at_0), at_0 / (at_0 + rest)

    def _symmetry_constant(self, num_classes: int) -> float:
        return 1.0


class NCELoss(Normalized, id="nce"):
    r"""Normalised cross entropy.

    .. math:: \ell(z, y) = \frac{\log p_y}{\sum_k \log p_k}

    Args:
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, 1]. Symmetric: yes, K = 1. At a uniform prediction its gradient is 1/(C log C) of cross entropy's.

    Reference:
        Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.

    Example:
        >>> import torch
        >>> NCELoss()(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # log(4) / (4 log(4))
        tensor(0.2500)
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(CELoss(), **options)
        self.sums = (LOG_P,)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        return log_p / sums[0]


class NFLLoss(Normalized, id="nfl"):
    r"""Normalised focal loss.

    .. math:: \ell(z, y) = \frac{(1 - p_y)^\gamma \log p_y}{\sum_k (1 - p_k)^\gamma \log p_k}

    Args:
        gamma: see :class:`FocalLoss`. Default: 0.5, the paper's. (Its CIFAR-10 configuration for symmetric noise
            multiplies NFL alone by 10, the others by 1; here a loss has no scale.)
        detach_modulator: treat the factors as constants in the gradient, in the numerator and the denominator, as the
            paper's code does. Default: False, the true gradient.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, 1]. Symmetric: yes, K = 1.

    Raises:
        ValueError: if gamma is negative or not finite.

    Reference:
        Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.

    Example:
        >>> import torch
        >>> NFLLoss(gamma=2)(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))
        tensor(0.2500)
    """

    examples = FocalLoss.examples

    def __init__(self, gamma: float = 0.5, detach_modulator: bool = False, **options: Unpack[Options]) -> None:
        super().__init__(FocalLoss(gamma, detach_modulator), **options)

    gamma = property(lambda self: self.loss.gamma)
    detach_modulator = property(lambda self: self.loss.detach_modulator)


class NMAELoss(Normalized, id="nmae"):
    r"""Normalised mean absolute error.

    .. math:: \ell(z, y) = \frac{1 - p_y}{\sum_k (1 - p_k)} = \frac{1 - p_y}{C - 1}

    (The published code halves it: its normaliser 2 (C - 1) belongs to :math:`2 - 2 p_y`.)

    Args:
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, 1/(C - 1)]. Symmetric: yes, K = 1.

    Reference:
        Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.

    Example:
        >>> import torch
        >>> NMAELoss()(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # (3/4) / 3
        tensor(0.2500)
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(MAELoss(), **options)


class NRCELoss(Normalized, id="nrce"):
    r"""Normalised reverse cross entropy; A cancels, so it equals :class:`NMAELoss`.

    .. math:: \ell(z, y) = \frac{-A (1 - p_y)}{\sum_k -A (1 - p_k)} = \frac{1 - p_y}{C - 1}

    (The published code multiplies by (C - 1)/4 where it should divide.)

    Args:
        A: stands for log 0; negative. Without effect here. Default: log(1e-4), see :class:`RCELoss`.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, 1/(C - 1)]. Symmetric: yes, K = 1.

    Raises:
        ValueError: if A is not negative.

    Reference:
        Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.

    Example:
        >>> import torch
        >>> NRCELoss()(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # (3/4) / 3
        tensor(0.2500)
    """

    def __init__(self, A: float = LOG_OF_ZERO, **options: Unpack[Options]) -> None:
        super().__init__(RCELoss(A), **options)

    A = property(lambda self: self.loss.A)


class NGCELoss(Normalized, id="ngce"):
    r"""Normalised generalised cross entropy.

    .. math:: \ell(z, y) = \frac{1 - p_y^q}{\sum_k (1 - p_k^q)} = \frac{1 - p_y^q}{C - \sum_k p_k^q}

    Args:
        q: in (0, 1]. Default: 0.1, as the paper's code has it for MNIST and CIFAR-10; it has 0.7 for CIFAR-100.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, 1 / (C - (C-1)^{1-q})]`. Symmetric: yes, K = 1.

    Raises:
        ValueError: if q is not in (0, 1].

    Reference:
        Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.

    Example:
        >>> import torch
        >>> NGCELoss()(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))
        tensor(0.2500)
    """

    examples = GCELoss.examples

    def __init__(self, q: float = 0.1, **options: Unpack[Options]) -> None:
        super().__init__(GCELoss(q), **options)

    q = property(lambda self: self.loss.q)


class _Complement(ClassFunction):
    """``f(p_min) - f(max(p, p_min))``: what a pointwise loss leaves to its largest value."""

    def __init__(self, loss: PointwiseLoss, p_min: float) -> None:
        self.loss, self.p_min = loss, p_min
        self.log_p_min = math.log(p_min) if p_min else -math.inf
        (self.most,) = loss.at([p_min])

    def f(self, log_p: Tensor) -> Tensor:
        return self.most - self.loss.f(log_p.clamp(min=self.log_p_min))

    def terms(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        if p is None:  # a gradient may be asked, which is finite only if log_p is
            return self.most - self.loss.terms(log_p.clamp(min=self.log_p_min))
        return (self.most - self.loss.terms(log_p, p)).clamp_(min=0)  # the same, as f falls, in fewer passes

    def class_sum(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        num_classes = log_p.shape[CLASS_DIM]
        if num_classes * self.p_min >= 1:  # a uniform prediction would give 0 / 0
            raise ValueError(f"p_min: expected less than 1/C with C = {num_classes} classes; got {self.p_min}")
        return super().class_sum(log_p, p)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        is_free = is_at_least(log_p, self.log_p_min)
        return self.loss.derivative(log_p.clamp(min=self.log_p_min), p).mul_(is_free.neg_())


class NormalizedNegative(_OfPointwise):
    r"""The normalised negative form of any pointwise loss f.

    .. math:: \ell(z, y) = 1 - \frac{A - f(\hat p_y)}{\sum_k (A - f(\hat p_k))},
        \qquad \hat p = \max(p, p_{\min}),\ A = f(p_{\min})

    It punishes the classes that are not the label's, so it is passive, and it is symmetric whatever f is.
    The clamp is part of the loss: classes of a probability below p_min have no gradient.

    Args:
        loss: a pointwise loss without options of its own.
        p_min: in [0, 1) and less than 1/C; 0 wants a loss that is finite at p = 0. Default: 1e-7, the published code's.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, 1]; 0 once every other class is at p_min, 1 where the label is. Symmetric: yes, K = C - 1. Asymmetric:
    for every noise.

    Raises:
        TypeError: if the loss is not pointwise.
        ValueError: if p_min is out of range, f(p_min) is not finite, or the loss brings options of its own.

    Reference:
        Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023.

    Example:
        >>> import torch
        >>> from noisyloss import GCELoss
        >>> input = torch.tensor([[0.64, 0.36]]).log()
        >>> criterion = NormalizedNegative(GCELoss(q=0.5), p_min=0.0)  # A - f = 2 sqrt(p)
        >>> criterion(input, torch.tensor([1]))  # 1 - 0.6 / (0.8 + 0.6)
        tensor(0.5714)
    """

    def __init__(self, loss: PointwiseLoss, p_min: float = 1e-7, **options: Unpack[Options]) -> None:
        super().__init__(loss, **options)
        p_min = check_number("p_min", p_min, "0 <= p_min < 1", lambda p: 0 <= p < 1)
        self._complement = _Complement(loss, p_min)
        self.sums: Sequence[ClassFunction] = (self._complement,)
        least, most = *loss.at([1.0]), self._complement.most
        if not least < most < math.inf:
            raise ValueError(f"p_min: expected a finite f(p_min) above f(1); got {most} from {loss!r}")

    p_min = property(lambda self: self._complement.p_min)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        return 1 - self._complement.f(log_p) / sums[0]

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        return 0.0, 1.0

    def _symmetry_constant(self, num_classes: int) -> float:
        return num_classes - 1.0

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return 1: of a weighted mean of shares, all of it in one class is the largest."""
        return 1.0


class NNCELoss(NormalizedNegative, id="nnce"):
    r"""Normalised negative cross entropy.

    .. math:: \ell(z, y) = 1 - \frac{A + \log \hat p_y}{\sum_k (A + \log \hat p_k)},
        \qquad \hat p = \max(p, p_{\min}),\ A = -\log p_{\min}

    Args:
        p_min: in (0, 1) and less than 1/C. Default: 1e-7, the published code's; some re-implementations have 1e-8.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, 1]. Symmetric: yes, K = C - 1. Asymmetric: for every noise.

    Raises:
        ValueError: if p_min is not in (0, 1).

    Reference:
        Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023.

    Example:
        >>> import torch
        >>> input = torch.tensor([[0.1, 0.9]]).log()
        >>> NNCELoss(p_min=0.01)(input, torch.tensor([0]))  # 1 - log(10) / (log(10) + log(90))
        tensor(0.6615)
    """

    examples = ({"p_min": 1e-3},)

    def __init__(self, p_min: float = 1e-7, **options: Unpack[Options]) -> None:
        super().__init__(CELoss(), p_min, **options)


class NNFLLoss(NormalizedNegative, id="nnfl"):
    r"""Normalised negative focal loss.

    .. math:: \ell(z, y) = 1 - \frac{A - f(\hat p_y)}{\sum_k (A - f(\hat p_k))},
        \qquad f(p) = -(1 - p)^\gamma \log p,\ \hat p = \max(p, p_{\min}),\ A = f(p_{\min})

    Args:
        gamma: see :class:`FocalLoss`. Default: 0.5, the paper's.
        p_min: in (0, 1) and less than 1/C. Default: 1e-7, the published code's.
        detach_modulator: treat the factors as constants in the gradient, in the numerator and the denominator, as the
            paper's code does. Default: False, the true gradient.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, 1]. Symmetric: yes, K = C - 1. Asymmetric: for every noise.

    Raises:
        ValueError: if gamma is negative, or p_min not in (0, 1).

    Reference:
        Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023.

    Example:
        >>> import torch
        >>> NNFLLoss(gamma=2)(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))
        tensor(0.7500)
    """

    examples = ({"gamma": 0.0}, {"gamma": 2.0}, {"gamma": 0.5, "detach_modulator": True})

    def __init__(
        self, gamma: float = 0.5, p_min: float = 1e-7, detach_modulator: bool = False, **options: Unpack[Options]
    ) -> None:
        super().__init__(FocalLoss(gamma, detach_modulator), p_min, **options)

    gamma = property(lambda self: self.loss.gamma)
    detach_modulator = property(lambda self: self.loss.detach_modulator)


class Symmetrized(_OfPointwise):
    r"""The symmetrised form of any pointwise loss f: less its mean over the classes.

    .. math:: \ell(z, y) = f(p_y) - \frac1C \sum_k f(p_k)

    It sums to 0 over the classes, so it is symmetric, and takes values of both signs. ``Symmetrized(GCELoss(q))`` is
    between :class:`UnhingedLoss` (q → 0) and MAE (q = 1). Where f is unbounded, so is it, both ways: normalise the
    logits.

    Args:
        loss: a pointwise loss without options of its own.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`\frac{C-1}{C} [f(1) - f(0), f(0) - \breve f(1/(C-1))]` with :math:`\breve f` the convex envelope of
    f. Symmetric: yes, K = 0.

    Raises:
        TypeError: if the loss is not pointwise.
        ValueError: if it brings options of its own.

    Reference:
        Lemire Paquin, Chaib-Draa & Giguère, arXiv 2605.20347, 2026.

    Example:
        >>> import torch
        >>> from noisyloss import GCELoss
        >>> input = torch.tensor([[0.64, 0.36]]).log()
        >>> Symmetrized(GCELoss(q=0.5))(input, torch.tensor([1]))  # 0.8 - (0.4 + 0.8) / 2
        tensor(0.2000)
    """

    def __init__(self, loss: PointwiseLoss, **options: Unpack[Options]) -> None:
        super().__init__(loss, **options)
        self.sums: Sequence[ClassFunction] = (self.loss, NUM_CLASSES)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        total, num_classes = sums
        return self.loss.f(log_p) - total / num_classes

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        at_1, at_0 = self.loss.at([1.0, 0.0])
        rest = convex_envelope(self.loss.at, 1 / (num_classes - 1))
        share = (num_classes - 1) / num_classes
        return share * (at_1 - at_0), share * (at_0 - rest)

    def _symmetry_constant(self, num_classes: int) -> float:
        return 0.0


class UnhingedLoss(Symmetrized, id="unhinged"):
    r"""Multi-class unhinged loss: linear in the logits, and symmetric.

    .. math:: \ell(z, y) = -\log p_y + \frac1C \sum_k \log p_k = -z_y + \frac1C \sum_k z_k

    Its gradient never ends: normalise the logits (their norm, or batch norm), or the loss falls without limit.

    Args:
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: (-∞, ∞). Symmetric: yes, K = 0.

    Reference:
        Lemire Paquin, Chaib-Draa & Giguère, arXiv 2605.20347, 2026.

    Example:
        >>> import torch
        >>> UnhingedLoss()(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([1]))  # 0 + 3 / 3
        tensor(1.)
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(CELoss(), **options)
