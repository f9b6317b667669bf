"""Cross entropy with the target or the prediction moved: smoothed, negated, bootstrapped, sharpened."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from noisyloss._base import RobustLoss, check_number
from noisyloss._log_probs import CLASS_DIM, LOG_P, NUM_CLASSES, ClassFunction, is_at_least, x_log_x
from noisyloss.losses.pointwise import CELoss, FocalLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack

    from noisyloss._base import Options

__all__ = ["BootstrapLoss", "EpsilonSoftmaxLoss", "NLSLoss", "NegativeLearningLoss"]


class NLSLoss(RobustLoss, id="nls"):
    r"""Negative label smoothing: cross entropy, with a share of the uniform distribution taken from the target.

    .. math:: \ell(z, y) = -(1 - r) \log p_y - \frac{r}{C} \sum_k \log p_k

    With r in (0, 1] it is label smoothing. With r < 0 it is unbounded below, and its gradient never ends: the paper
    trains with cross entropy first, then with this loss at a learning rate of 1e-6.

    Args:
        r: at most 1; 0 is cross entropy. Default: -0.2, our own: the mildest negative value that the paper's code tries
            on CIFAR-10, down to -8.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: (-∞, ∞) for r < 0; [the entropy of the smoothed target, ∞) for r ≥ 0. Symmetric: no.

    Raises:
        ValueError: if r is greater than 1.

    Reference:
        Wei et al., "To Smooth or Not? When Label Smoothing Meets Noisy Labels", ICML 2022.

    Example:
        >>> import torch
        >>> input = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> NLSLoss(r=-1)(input, torch.tensor([0]))  # 2 log(2) - (log(2) + 2 log(4)) / 3
        tensor(0.2310)
    """

    examples = ({"r": 0.1}, {"r": -2.0}, {"r": 0.0})

    def __init__(self, r: float = -0.2, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.r = check_number("r", r, "r <= 1", lambda r: r <= 1)
        self.sums: Sequence[ClassFunction] = (LOG_P, NUM_CLASSES)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        total, num_classes = sums
        return (self.r - 1) * log_p - self.r * (total / num_classes)

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        if self.r < 0:
            return -math.inf, math.inf
        other = self.r / num_classes
        target = [1 - self.r + other, *[other] * (num_classes - 1)]
        return -sum(t * math.log(t) for t in target if t), math.inf

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        """Return the range of cross entropy's sum, which does not depend on r; under a bias, the bounds'."""
        if bias:
            return super()._class_sum_range(num_classes, bias)
        return num_classes * math.log(num_classes), math.inf


class _Negative(ClassFunction):
    """``-log max(1 - p, p_min)``: what it costs to predict a class that is not the label's."""

    def __init__(self, p_min: float) -> None:
        self.p_min = p_min

    def f(self, log_p: Tensor) -> Tensor:
        return self.terms(log_p)

    def terms(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        p = log_p.exp() if p is None else p
        return torch.log1p(p.clamp(max=1 - self.p_min).neg_()).neg_()

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        q = 1 - p
        return is_at_least(q, self.p_min).mul_(p).div_(q.clamp_(min=self.p_min))


class NegativeLearningLoss(RobustLoss, id="nl"):
    r"""Negative learning: cross entropy on the labels that a sample does not have.

    .. math:: \ell(z, y) = -\frac{1}{C - 1} \sum_{k \ne y} \log \max(1 - p_k,\, p_{\min})

    The paper draws some complementary labels for each sample, one on CIFAR-10 and 110 on CIFAR-100; this is the
    expectation of one of them. It is the first stage of NLNL, which then goes on with the samples that it trusts.

    Args:
        p_min: in (0, 1/2). Default: 1e-5, the published code's. A class of a probability above 1 - p_min has no
            gradient.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, -\log p_{\min} / (C - 1)]` with two classes; with more, :math:`-\log(1 - p_{\min}) / (C - 1)`
    above it, from a class just below the clamp and another with what is left. Symmetric: no.

    Raises:
        ValueError: if p_min is not in (0, 1/2).

    Reference:
        Kim et al., "NLNL: Negative Learning for Noisy Labels", ICCV 2019.

    Example:
        >>> import torch
        >>> input = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> NegativeLearningLoss()(input, torch.tensor([1]))  # (log(2) + log(4/3)) / 2
        tensor(0.4904)
    """

    examples = ({"p_min": 1e-4},)

    def __init__(self, p_min: float = 1e-5, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.p_min = check_number("p_min", p_min, "0 < p_min < 1/2", lambda p: 0 < p < 0.5)
        self._negative = _Negative(self.p_min)
        self.sums: Sequence[ClassFunction] = (self._negative, NUM_CLASSES)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        total, num_classes = sums
        return (total - self._negative.f(log_p)) / (num_classes - 1)

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        rest = 0.0 if num_classes == 2 else math.log1p(-self.p_min)
        return 0.0, (-math.log(self.p_min) - rest) / (num_classes - 1)

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        """Return the range of the sum over all classes: least at the uniform prediction, most at the high bound's."""
        if bias:
            return super()._class_sum_range(num_classes, bias)
        return -num_classes * math.log1p(-1 / num_classes), -math.log(self.p_min) - math.log1p(-self.p_min)


class _Entropy(ClassFunction):
    """-p log p, whose sum over the classes is the entropy."""

    def f(self, log_p: Tensor) -> Tensor:
        return self.terms(log_p)

    def terms(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        return -x_log_x(log_p, p)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return -p - x_log_x(log_p, p)


class BootstrapLoss(RobustLoss, id="bootstrap"):
    r"""Soft bootstrapping: cross entropy, with a share of the prediction mixed into the target.

    .. math:: \ell(z, y) = -(1 - t) \log p_y - t \sum_k p_k \log p_k

    Cross entropy plus the entropy of the prediction; the gradient goes through both of its factors.

    Args:
        t: the share of the prediction, in [0, 1); 0 is cross entropy. Default: 0.05, as in published code.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, ∞). Symmetric: no.

    Raises:
        ValueError: if t is not in [0, 1).

    Reference:
        Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping", ICLR 2015 workshop.

    Example:
        >>> import torch
        >>> input = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> BootstrapLoss(t=0.5)(input, torch.tensor([1]))  # log(4) / 2 + (log(2) / 2 + log(4) / 2) / 2
        tensor(1.2130)
    """

    examples = ({"t": 0.8}, {"t": 0.0})

    def __init__(self, t: float = 0.05, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.t = check_number("t", t, "0 <= t < 1", lambda t: 0 <= t < 1)
        self.sums: Sequence[ClassFunction] = (_Entropy(),)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        return (self.t - 1) * log_p + self.t * sums[0]

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        return 0.0, math.inf

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        low, high = CELoss()._class_sum_range(num_classes, bias)
        return (1 - self.t) * low, high


class _Largest(ClassFunction):
    """The largest log-probability in place of a sum; a constant to the gradient, as which class it is cannot vary."""

    def f(self, log_p: Tensor) -> Tensor:
        return log_p.detach()

    def class_sum(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        return self.f(log_p).amax(CLASS_DIM, keepdim=True)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return torch.zeros_like(log_p)


class EpsilonSoftmaxLoss(RobustLoss, id={"epsilon-ce": {}, "epsilon-focal": {"gamma": 0.1}}):
    r"""Focal loss, or cross entropy, of the ε-softmax, which is close to one-hot.

    .. math::
        \ell(z, y) = -(1 - \hat p_y)^\gamma \log \hat p_y, \qquad
        \hat p = \max\Bigl(\frac{p + m\, e_{\arg\max p}}{m + 1},\, p_{\min}\Bigr)

    It jumps where the argmax changes; classes that share the largest probability all count as the argmax (the published
    code takes the first). The published loss adds MAE: ``create_loss("epsilon-ce+mae")``.

    Args:
        m: at least 0; 0 is the softmax. Default: 1e5, the paper's on CIFAR-10 with symmetric noise; 1e3 with asymmetric
            noise.
        gamma: see :class:`FocalLoss`. Default: 0, cross entropy; ``epsilon-focal`` has 0.1, the paper's.
        p_min: in [0, 1). Default: 1e-8, the published code's. With it and m = 1e5, a class that is not the argmax and
            has a probability below 0.001 has no gradient.
        detach_modulator: see :class:`FocalLoss`; the published code does. Default: False.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, -(1 - p_{\min})^\gamma \log p_{\min}]`, 18.4 by default. Symmetric: no.

    Raises:
        TypeError: if detach_modulator is not a bool.
        ValueError: if m or gamma is negative, or p_min not in [0, 1).

    Reference:
        Wang et al., "ε-Softmax: Approximating One-Hot Vectors for Mitigating Label Noise", NeurIPS 2024.

    Example:
        >>> import torch
        >>> input = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
        >>> EpsilonSoftmaxLoss(m=3, reduction="none")(input, torch.tensor([0, 1]))  # -log(3.6 / 4), -log(0.4 / 4)
        tensor([0.1054, 2.3026])
    """

    examples = (
        {"m": 0.0, "p_min": 0.0},
        {"m": 1e3, "gamma": 0.1, "detach_modulator": True},
        {"m": 2.0, "gamma": 1.0, "p_min": 1e-3},
    )

    def __init__(
        self,
        m: float = 1e5,
        gamma: float = 0.0,
        p_min: float = 1e-8,
        detach_modulator: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.m = check_number("m", m, "m >= 0", lambda m: m >= 0)
        self.p_min = check_number("p_min", p_min, "0 <= p_min < 1", lambda p: 0 <= p < 1)
        focal = FocalLoss(gamma, detach_modulator)
        self.gamma, self.detach_modulator = focal.gamma, focal.detach_modulator
        self.base = focal if self.gamma else CELoss()
        self.sums: Sequence[ClassFunction] = (_Largest(),)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        is_largest = log_p >= sums[0]
        of_largest = torch.log1p(torch.expm1(log_p.where(is_largest, 0.0)) / (self.m + 1))
        log_p_min = math.log(self.p_min) if self.p_min else -math.inf
        return self.base.f(torch.where(is_largest, of_largest, log_p - math.log1p(self.m)).clamp(min=log_p_min))

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        low, high = self.base.at([1.0, self.p_min])
        return low, high
