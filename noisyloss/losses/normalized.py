"""Normalised losses: a loss divided by its sum over the classes, which makes any loss symmetric."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from noisyloss._base import PointwiseLoss, RobustLoss, convex_envelope, plain_member
from noisyloss.losses.pointwise import LOG_OF_ZERO, CELoss, FocalLoss, GCELoss, MAELoss, RCELoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack

    from noisyloss._base import Options

__all__ = ["NCELoss", "NFLLoss", "NGCELoss", "NMAELoss", "NRCELoss", "Normalized"]


class Normalized(RobustLoss):
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

    loss: PointwiseLoss

    def __init__(self, loss: PointwiseLoss, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        if not isinstance(loss, PointwiseLoss):
            raise TypeError(f"loss: expected a pointwise loss such as CELoss(); got {loss!r}")
        at_1, at_0 = loss.at([1.0, 0.0])
        if not 0 <= at_1 <= at_0 or at_0 == 0:
            raise ValueError(f"loss: expected values >= 0 that fall as p rises; got {at_0} to {at_1} from {loss!r}")
        self.loss = plain_member("loss", loss)

    @property
    def sums(self) -> Sequence[PointwiseLoss]:  # type: ignore[override]
        return (self.loss,)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        return self.loss.f(log_p) / sums[0]

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
