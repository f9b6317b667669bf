"""Asymmetric losses: where the clean label is likely enough, being sure of it minimises the loss under noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from noisyloss._base import PointwiseLoss, RobustLoss, check_number
from noisyloss._log_probs import NUM_CLASSES, ClassFunction, Power

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack

    from noisyloss._base import Options

__all__ = ["AELLoss", "AGCELoss", "AMSELoss", "ANormLoss", "AULLoss", "MSELoss"]


class AGCELoss(PointwiseLoss, id="agce"):
    r"""Asymmetric generalised cross entropy.

    .. math:: \ell(z, y) = \frac{(a + 1)^q - (a + p_y)^q}{q}

    Args:
        a: positive; the larger, the closer to a multiple of MAE. a → 0 is :class:`GCELoss`. Default: 0.6, the published
            code's for CIFAR-10 and CIFAR-100.
        q: positive; at 1 it is MAE. Default: 0.6, likewise.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, ((a+1)^q - a^q) / q]`. Symmetric: only with q = 1. Asymmetric: for every noise with q ≥ 1, else
    from the ratio :math:`((a+1)/a)^{1-q}` of clean to noise weight, 1.48 by default.

    Raises:
        ValueError: if a or q is not positive.

    Reference:
        Zhou et al., "Asymmetric Loss Functions for Learning with Noisy Labels", ICML 2021.

    Example:
        >>> import torch
        >>> AGCELoss(a=1, q=2)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # (4 - 2.25) / 2
        tensor(0.8750)
    """

    examples = ({"a": 6.0, "q": 1.5}, {"a": 1e-5, "q": 0.5}, {"a": 4.0, "q": 0.2}, {"a": 1.0, "q": 1.0})

    def __init__(self, a: float = 0.6, q: float = 0.6, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.a = check_number("a", a, "a > 0", lambda a: a > 0)
        self.q = check_number("q", q, "q > 0", lambda q: q > 0)

    def _log_a_plus_p(self, log_p: Tensor) -> Tensor:
        return torch.logaddexp(log_p, log_p.new_full((), math.log(self.a)))

    def f(self, log_p: Tensor) -> Tensor:
        most: float = (self.a + 1) ** self.q
        return torch.expm1(self.q * (self._log_a_plus_p(log_p) - math.log1p(self.a))) * (-most / self.q)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return -torch.exp((self.q - 1) * self._log_a_plus_p(log_p) + log_p)

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return 1 where f is concave; of a convex f the slope at p = 0 over that at p = 1."""
        return 1.0 if self.q >= 1 else ((self.a + 1) / self.a) ** (1 - self.q)


class AULLoss(PointwiseLoss, id="aul"):
    r"""Asymmetric unhinged loss; the published code calls it AUELoss.

    .. math:: \ell(z, y) = \frac{(a - p_y)^q - (a - 1)^q}{q}

    Args:
        a: greater than 1. Default: 5.5, the published code's for CIFAR-10 and CIFAR-100.
        q: positive; at 1 it is MAE. Default: 3, likewise.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, (a^q - (a-1)^q) / q]`. Symmetric: only with q = 1. Asymmetric: for every noise with q ≤ 1, else
    from the ratio :math:`(a/(a-1))^{q-1}` of clean to noise weight, 1.49 by default.

    Raises:
        ValueError: if a is not greater than 1, or q not positive.

    Reference:
        Zhou et al., "Asymmetric Loss Functions for Learning with Noisy Labels", ICML 2021.

    Example:
        >>> import torch
        >>> AULLoss(a=2, q=2)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # (2.25 - 1) / 2
        tensor(0.6250)
    """

    examples = ({"a": 6.3, "q": 1.5}, {"a": 3.0, "q": 0.1}, {"a": 2.0, "q": 1.0})

    def __init__(self, a: float = 5.5, q: float = 3.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.a = check_number("a", a, "a > 1", lambda a: a > 1)
        self.q = check_number("q", q, "q > 0", lambda q: q > 0)

    def f(self, log_p: Tensor) -> Tensor:
        least: float = (self.a - 1) ** self.q
        return torch.expm1(self.q * torch.log1p(-torch.expm1(log_p) / (self.a - 1))) * (least / self.q)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return -((self.a - p) ** (self.q - 1)) * p

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return 1 where f is concave; of a convex f the slope at p = 0 over that at p = 1."""
        return 1.0 if self.q <= 1 else (self.a / (self.a - 1)) ** (self.q - 1)


class AELLoss(PointwiseLoss, id="ael"):
    r"""Asymmetric exponential loss.

    .. math:: \ell(z, y) = e^{-p_y / a}

    Args:
        a: positive; the larger, the closer to a multiple of MAE, plus a constant. Default: 2.5, the published code's
            for CIFAR-10 and CIFAR-100.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[e^{-1/a}, 1]`: the least value is not 0. Symmetric: no. Asymmetric: from the ratio :math:`e^{1/a}`
    of clean to noise weight, 1.49 by default.

    Raises:
        ValueError: if a is not positive.

    Reference:
        Zhou et al., "Asymmetric Loss Functions for Learning with Noisy Labels", ICML 2021.

    Example:
        >>> import torch
        >>> AELLoss(a=0.5)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # exp(-1)
        tensor(0.3679)
    """

    examples = ({"a": 0.5},)

    def __init__(self, a: float = 2.5, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.a = check_number("a", a, "a > 0", lambda a: a > 0)

    def f(self, log_p: Tensor) -> Tensor:
        return torch.exp(-torch.exp(log_p) / self.a)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        share = p / self.a
        return -share * torch.exp(-share)

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return the slope of f, which is convex, at p = 0 over that at p = 1."""
        return math.exp(1 / self.a) if self.a > 1 / 700 else math.inf


class _Gini(ClassFunction):
    """p (1 - p), whose sum over the classes is 1 - ‖p‖², the impurity of Gini."""

    def f(self, log_p: Tensor) -> Tensor:
        return self.terms(log_p)

    def terms(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        p = log_p.exp() if p is None else p
        return p * (1 - p)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return (1 - 2 * p).mul_(p)


class AMSELoss(RobustLoss, id="amse"):
    r"""Asymmetric mean squared error.

    .. math:: \ell(z, y) = \frac1C \lVert a\, e_y - p \rVert^2 = \frac{a^2 - 2 a p_y + \lVert p \rVert^2}{C}

    :math:`2a/C` times MAE plus a small penalty on sure predictions, on top of the constant :math:`(a - 1)^2 / C`:
    84.1 for 10 classes and a = 30. It costs float32 digits of the value, not of the gradient; subtract
    ``bounds(C)[0]`` to log the loss.

    Args:
        a: at least 1; the larger, the closer to a multiple of MAE. Default: 30, the paper's on CIFAR-10.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`. Under class probabilities it is the expected loss.

    Bounds: :math:`[(a-1)^2 / C, (a^2+1) / C]`: the least value is not 0. Symmetric: no, but the sum over the classes
    varies by less than 1. Asymmetric: from the ratio :math:`(a + C - 1) / (a - 1)` of clean to noise weight.

    Raises:
        ValueError: if a is less than 1.

    Reference:
        Wang et al., "Joint Asymmetric Loss for Learning with Noisy Labels", ICCV 2025.

    Example:
        >>> import torch
        >>> AMSELoss(a=3)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # (2.5**2 + 0.5**2) / 2
        tensor(3.2500)
    """

    examples: ClassVar[Sequence[dict[str, Any]]] = ({"a": 2.0},)

    def __init__(self, a: float = 30.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.a = check_number("a", a, "a >= 1", lambda a: a >= 1)
        self.sums: Sequence[ClassFunction] = (_Gini(), NUM_CLASSES)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        gini, num_classes = sums
        return ((self.a - 1) ** 2 - 2 * self.a * torch.expm1(log_p) - gini) / num_classes

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        return (self.a - 1) ** 2 / num_classes, (self.a**2 + 1) / num_classes

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        """Return the range of a² - 2a/C + ‖p‖²; under a bias, the least bound of each class."""
        constant = self.a**2 - 2 * self.a / num_classes
        low = num_classes * self._bounds(num_classes)[0] if bias else constant + 1 / num_classes
        return low, constant + 1

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return the ratio from which no step from the vertex lowers the weighted loss, which is convex."""
        return (self.a + num_classes - 1) / (self.a - 1) if self.a > 1 else math.inf


class MSELoss(AMSELoss, id="mse"):
    r"""Mean squared error between the one-hot target and the probabilities: the Brier score over C.

    .. math:: \ell(z, y) = \frac1C \lVert e_y - p \rVert^2

    It equals :class:`torch.nn.MSELoss` on the probabilities, as in the published code of ANL and ε-softmax; some code
    sums over the classes instead: multiply by C to compare.

    Args:
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`. Under class probabilities t it is the expected loss, the distance between t and p plus
        a constant.

    Bounds: [0, 2/C]. Symmetric: no.

    Reference:
        Ghosh, Kumar & Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks", AAAI 2017.

    Example:
        >>> import torch
        >>> MSELoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # (0.5**2 + 0.5**2) / 2
        tensor(0.2500)
    """

    examples = ()

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(1.0, **options)


class ANormLoss(RobustLoss, id="anorm"):
    r"""Asymmetric Lp norm of the difference between a scaled one-hot target and the probabilities.

    .. math:: \ell(z, y) = \frac1p \bigl( \lVert a\, e_y - p(z) \rVert_p^p - (a - 1)^p \bigr)
        = \frac1p \Bigl( (a - p_y)^p - (a - 1)^p + \sum_{k \ne y} p_k^p \Bigr)

    Args:
        a: greater than 1. Default: 1.5, the published code's.
        p: the exponent, positive; at 1 the loss is twice MAE. Default: 0.9, the published code's, which clamps the
            probabilities at 1e-5 besides; here there is no clamp.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`. Under class probabilities it is the expected loss.

    Bounds: :math:`[0, (a^p - (a-1)^p + (C-1)^{1-p}) / p]` for p ≤ 1; for p > 1 the last term is 1. Symmetric: only with
    p = 1.

    Raises:
        ValueError: if a is not greater than 1, or p not positive.

    Reference:
        Zhou et al., "Asymmetric Loss Functions for Learning with Noisy Labels", ICML 2021.

    Example:
        >>> import torch
        >>> ANormLoss(a=2, p=2)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # (1.5**2 - 1 + 0.5**2) / 2
        tensor(0.7500)
    """

    examples: ClassVar[Sequence[dict[str, Any]]] = ({"a": 2.0, "p": 2.0}, {"a": 2.0, "p": 0.5}, {"p": 1.0})

    def __init__(self, a: float = 1.5, p: float = 0.9, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.a = check_number("a", a, "a > 1", lambda a: a > 1)
        self.p = check_number("p", p, "p > 0", lambda p: p > 0)
        self.sums: Sequence[ClassFunction] = (Power(self.p),)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        own = (self.a - 1 - torch.expm1(log_p)) ** self.p - torch.exp(self.p * log_p)
        least: float = (self.a - 1) ** self.p
        return (own + sums[0] - least) / self.p

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        rest = (num_classes - 1) ** max(0.0, 1 - self.p)
        return 0.0, (self.a**self.p - (self.a - 1) ** self.p + rest) / self.p

    def _symmetry_constant(self, num_classes: int) -> float | None:
        return 2.0 * (num_classes - 1) if self.p == 1 else None

    def _asymmetry_ratio(self, num_classes: int) -> float:
        return 1.0 if self.p == 1 else math.inf
