"""Losses that are a function f of the target's log-probability alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from noisyloss._base import PointwiseLoss, check_bool, check_number
from noisyloss._log_probs import CLASS_DIM, exp, one_minus_p

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from noisyloss._base import Options

__all__ = ["CELoss", "FocalLoss", "GCELoss", "MAELoss", "RCELoss"]

LOG_OF_ZERO = math.log(1e-4)
"""What the published code of SCE and APL uses for log 0."""


class CELoss(PointwiseLoss, id="ce"):
    r"""Cross entropy, equal to :class:`torch.nn.CrossEntropyLoss` in every option.

    .. math:: \ell(z, y) = -\log p_y

    It fits clean labels best and memorises wrong ones: the yardstick of this package.

    Args:
        **options: ``weight``, ``ignore_index``, ``reduction``, ``label_smoothing``, as in
            :class:`torch.nn.CrossEntropyLoss`.

    Shape:
        See :class:`RobustLoss`. The one difference from torch: float16 and bfloat16 logits give a float32 loss.

    Bounds: [0, ∞). Symmetric: no.

    Example:
        >>> import torch
        >>> input = torch.tensor([[2.0, 0.0]])  # p = (0.8808, 0.1192)
        >>> CELoss()(input, torch.tensor([1]))
        tensor(2.1269)
    """

    affine = (0.0, -1.0)

    def f(self, log_p: Tensor) -> Tensor:
        return -log_p

    def class_sum(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        return -log_p.sum(CLASS_DIM, keepdim=True)


class FocalLoss(PointwiseLoss, id="focal"):
    r"""Focal loss.

    .. math:: \ell(z, y) = -(1 - p_y)^\gamma \log p_y

    Args:
        gamma: how much confident samples are played down, at least 0; 0 is cross entropy. Default: 0.5, the value of
            the literature on label noise (Ma et al., 2020); object detection uses 2.
        detach_modulator: treat the factor :math:`(1 - p_y)^\gamma` as a constant in the gradient, as the published code
            of Ma et al. does. Default: False, the true gradient.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, ∞). Symmetric: no.

    Raises:
        ValueError: if gamma is negative or not finite.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Example:
        >>> import torch
        >>> FocalLoss(gamma=2)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # log(2) / 4
        tensor(0.1733)
    """

    examples = ({"gamma": 0.0}, {"gamma": 2.0}, {"gamma": 0.5, "detach_modulator": True})

    def __init__(self, gamma: float = 0.5, detach_modulator: bool = False, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.gamma = check_number("gamma", gamma, "gamma >= 0", lambda g: g >= 0)
        self.detach_modulator = check_bool("detach_modulator", detach_modulator)

    def f(self, log_p: Tensor) -> Tensor:
        return self._modulated(log_p, one_minus_p(log_p))

    def _modulated(self, log_p: Tensor, q: Tensor) -> Tensor:
        modulator = _power(q, self.gamma)
        return (modulator.detach() if self.detach_modulator else modulator) * -log_p

    def terms(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        if p is None:
            return self._modulated(log_p, one_minus_p(log_p, log_p.exp()))
        return one_minus_p(log_p, p).pow_(self.gamma).mul_(log_p).neg_()

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        q = one_minus_p(log_p, p)
        if self.detach_modulator:
            return _power(q, self.gamma).neg_()
        return torch.addcmul(q, p, log_p, value=-self.gamma).div_(_power(q, 1 - self.gamma)).neg_()


def _power(q: Tensor, exponent: float) -> Tensor:
    return q.sqrt() if exponent == 0.5 else q**exponent  # compiled, a power is several times as slow


class MAELoss(PointwiseLoss, id="mae"):
    r"""Mean absolute error between the one-hot target and the probabilities, halved.

    .. math:: \ell(z, y) = 1 - p_y = \tfrac12 \lVert e_y - p \rVert_1

    Symmetric and bounded, so robust; but its gradient :math:`p_y (1 - p_y)` vanishes on samples that are far from being
    learned, and it underfits. Some papers and their code (Zhou et al., 2021; Wang et al., 2024) use
    :math:`2 - 2 p_y`: double the weight to compare.

    Args:
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`. Under class probabilities t it is the expected loss :math:`1 - t \cdot p`, not the L1
        distance.

    Bounds: [0, 1]. Symmetric: yes, K = C - 1.

    Reference:
        Ghosh, Kumar & Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks", AAAI 2017.

    Example:
        >>> import torch
        >>> MAELoss()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))  # 1 - 0.1192
        tensor(0.8808)
    """

    def f(self, log_p: Tensor) -> Tensor:
        return -torch.expm1(log_p)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return -p


class RCELoss(PointwiseLoss, id="rce"):
    r"""Reverse cross entropy: prediction and target change places, and A stands for log 0.

    .. math:: \ell(z, y) = -\sum_k p_k \log [e_y]_k = -A\,(1 - p_y)

    A multiple of :class:`MAELoss`: robust, and prone to underfit alone.

    Args:
        A: stands for log 0; negative. Default: log(1e-4) = -9.2103, as the published code of SCE and APL clamps.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, -A]. Symmetric: yes, K = -A (C - 1).

    Raises:
        ValueError: if A is not negative.

    Reference:
        Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019.

    Example:
        >>> import torch
        >>> RCELoss(A=-4)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))  # 4 * 0.8808
        tensor(3.5232)
    """

    examples = ({"A": -4.0},)

    def __init__(self, A: float = LOG_OF_ZERO, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.A = check_number("A", A, "A < 0", lambda a: a < 0)

    def f(self, log_p: Tensor) -> Tensor:
        return self.A * torch.expm1(log_p)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return self.A * p


class GCELoss(PointwiseLoss, id="gce"):
    r"""Generalised cross entropy: between cross entropy (q → 0) and MAE (q = 1).

    .. math:: \ell(z, y) = \frac{1 - p_y^q}{q}

    Args:
        q: in (0, 1]; the larger, the more robust and the slower to train. Default: 0.7, the paper's for all data sets.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, 1/q]. Symmetric: only with q = 1.

    Raises:
        ValueError: if q is not in (0, 1].

    Reference:
        Zhang & Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
        NeurIPS 2018.

    Example:
        >>> import torch
        >>> GCELoss(q=0.5)(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # (1 - sqrt(1/4)) / 0.5
        tensor(1.)
    """

    examples = ({"q": 1e-6}, {"q": 0.1}, {"q": 1.0})

    def __init__(self, q: float = 0.7, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.q = check_number("q", q, "0 < q <= 1", lambda q: 0 < q <= 1)

    def f(self, log_p: Tensor) -> Tensor:
        return -torch.expm1(self.q * log_p) / self.q

    def class_sum(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        if self.q < 0.1:  # beside the number of classes the rest would lose its digits
            return super().class_sum(log_p)
        return (log_p.shape[CLASS_DIM] - exp(log_p, self.q).sum(CLASS_DIM, keepdim=True)) / self.q

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return exp(log_p, self.q).neg_()
