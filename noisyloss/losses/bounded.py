"""Bounded pointwise losses that stay close to cross entropy where the network agrees with the label."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from noisyloss._base import PointwiseLoss, check_bool, check_number
from noisyloss._log_probs import x_log_x

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from noisyloss._base import Options

__all__ = ["JSLoss", "PHuberCELoss", "PHuberGCELoss", "TaylorCELoss", "TruncatedGCELoss"]


class PHuberCELoss(PointwiseLoss, id="phuber-ce"):
    r"""Partially Huberised cross entropy: linear in p where its slope would exceed tau.

    .. math:: \ell(z, y) = \begin{cases} -\log p_y & p_y > 1/\tau \\ 1 + \log \tau - \tau p_y & \text{else} \end{cases}

    Args:
        tau: the largest slope, greater than 1; the smaller, the more robust. Default: 2, the paper's on CIFAR-10 (10 on
            MNIST and CIFAR-100).
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, 1 + \log \tau]`. Symmetric: no. Asymmetric: from the ratio tau of clean to noise weight.

    Raises:
        ValueError: if tau is not greater than 1.

    Reference:
        Menon et al., "Can Gradient Clipping Mitigate Label Noise?", ICLR 2020.

    Example:
        >>> import torch
        >>> PHuberCELoss()(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))  # 1 + log(2) - 2 * 0.1192
        tensor(1.4547)
    """

    examples = ({"tau": 10.0},)

    def __init__(self, tau: float = 2.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.tau = check_number("tau", tau, "tau > 1", lambda tau: tau > 1)

    def f(self, log_p: Tensor) -> Tensor:
        log_tau = math.log(self.tau)
        return torch.where(log_p > -log_tau, -log_p, 1 + log_tau - self.tau * torch.exp(log_p))

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return -torch.exp((log_p + math.log(self.tau)).clamp(max=0))

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return the slope of f, which is convex, at p = 0 over that at p = 1."""
        return self.tau


class PHuberGCELoss(PointwiseLoss, id="phuber-gce"):
    r"""Partially Huberised generalised cross entropy: linear in p where its slope would exceed tau.

    .. math::
        \ell(z, y) = \begin{cases} (1 - p_y^q) / q & p_y > h \\ (1 - h^q) / q + \tau\,(h - p_y) & \text{else}
        \end{cases} \qquad h = \tau^{1/(q-1)}

    With the defaults h = 0.0005: in practice :class:`GCELoss`, with a gradient that stays finite in p.

    Args:
        q: in (0, 1), see :class:`GCELoss`. Default: 0.7, the paper's for all data sets.
        tau: the largest slope, greater than 1. Default: 10, likewise.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, (1 - h^q) / q + \tau h]`. Symmetric: no. Asymmetric: from the ratio tau of clean to noise weight.

    Raises:
        ValueError: if q is not in (0, 1), or tau not greater than 1.

    Reference:
        Menon et al., "Can Gradient Clipping Mitigate Label Noise?", ICLR 2020.

    Example:
        >>> import torch
        >>> input = torch.tensor([[0.0625, 0.9375]]).log()
        >>> PHuberGCELoss(q=0.5, tau=2)(input, torch.tensor([0]))  # h = 1/4: (1 - 1/2) / 0.5 + 2 * 0.1875
        tensor(1.3750)
    """

    examples = ({"q": 0.5, "tau": 2.0}, {"q": 1e-6, "tau": 2.0})

    def __init__(self, q: float = 0.7, tau: float = 10.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.q = check_number("q", q, "0 < q < 1", lambda q: 0 < q < 1)
        self.tau = check_number("tau", tau, "tau > 1", lambda tau: tau > 1)

    @property
    def _log_h(self) -> float:
        return math.log(self.tau) / (self.q - 1)

    def f(self, log_p: Tensor) -> Tensor:
        log_h = self._log_h
        linear = -math.expm1(self.q * log_h) / self.q + self.tau * (math.exp(log_h) - torch.exp(log_p))
        return torch.where(log_p > log_h, -torch.expm1(self.q * log_p) / self.q, linear)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return torch.where(log_p > self._log_h, -torch.exp(self.q * log_p), -self.tau * p)

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return the slope of f, which is convex, at p = 0 over that at p = 1."""
        return self.tau


class TaylorCELoss(PointwiseLoss, id="taylor-ce"):
    r"""Taylor cross entropy: the first t terms of the series of :math:`-\log p_y` at 1.

    .. math:: \ell(z, y) = \sum_{i=1}^{t} \frac{(1 - p_y)^i}{i}

    Between :class:`MAELoss` (t = 1) and cross entropy (t → ∞).

    Args:
        t: the number of terms, at least 1; the fewer, the more robust. Default: 2, our own: the paper searches 2 to 6
            for each data set, and takes 6 on CIFAR-100.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, 1 + \frac12 + \dots + \frac1t]`. Symmetric: only with t = 1. Asymmetric: from the ratio t of
    clean to noise weight.

    Raises:
        ValueError: if t is not an integer of at least 1.

    Reference:
        Feng et al., "Can Cross Entropy Loss Be Robust to Label Noise?", IJCAI 2020.

    Example:
        >>> import torch
        >>> TaylorCELoss(t=3)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # 1/2 + 1/8 + 1/24
        tensor(0.6667)
    """

    examples = ({"t": 1}, {"t": 6})

    def __init__(self, t: int = 2, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.t = int(check_number("t", t, "an integer t >= 1", lambda t: t >= 1 and t == int(t)))

    def f(self, log_p: Tensor) -> Tensor:
        others = -torch.expm1(log_p)
        value = others / self.t
        for i in range(self.t - 1, 0, -1):
            value = others * (1 / i + value)
        return value

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return torch.expm1(self.t * torch.log1p(-p))  # (1 - p)**t - 1

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return the slope of f, which is convex, at p = 0 over that at p = 1."""
        return float(self.t)


class TruncatedGCELoss(PointwiseLoss, id="tgce"):
    r"""Truncated generalised cross entropy: constant where the label has at most the probability k.

    .. math:: \ell(z, y) = \frac{1 - \max(p_y, k)^q}{q}

    Samples below k have no gradient at all: start from a network trained with :class:`GCELoss`, or with a logit bias.
    The paper's algorithm also decides again every ten epochs which samples to keep; this is the loss of one sample.

    Args:
        q: in (0, 1], see :class:`GCELoss`. Default: 0.7.
        k: in [0, 1); 0 is :class:`GCELoss`. Default: 0.5. Both as in third-party code of the paper's algorithm.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, (1 - k^q) / q]`. Symmetric: no, but for k = 0 with q = 1. Asymmetric: for every noise with
    k ≥ 1/2; nothing is proved for smaller k.

    Raises:
        ValueError: if q is not in (0, 1], or k not in [0, 1).

    Reference:
        Zhang & Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
        NeurIPS 2018.

    Example:
        >>> import torch
        >>> criterion = TruncatedGCELoss(q=0.5, k=0.25)
        >>> criterion(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))  # 0.1192 < 1/4: (1 - 1/2) / 0.5
        tensor(1.)
    """

    examples = ({"k": 0.0}, {"q": 0.5, "k": 0.1})

    def __init__(self, q: float = 0.7, k: float = 0.5, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.q = check_number("q", q, "0 < q <= 1", lambda q: 0 < q <= 1)
        self.k = check_number("k", k, "0 <= k < 1", lambda k: 0 <= k < 1)

    @property
    def _log_k(self) -> float:
        return math.log(self.k) if self.k else -math.inf

    def f(self, log_p: Tensor) -> Tensor:
        return -torch.expm1(self.q * log_p.clamp(min=self._log_k)) / self.q

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return torch.where(log_p >= self._log_k, -torch.exp(self.q * log_p), 0.0)

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return 1 if at most one class can leave the plateau: it gains nothing that the largest weight would not."""
        return 1.0 if self.k >= 0.5 else super()._asymmetry_ratio(num_classes)


class JSLoss(PointwiseLoss, id="js"):
    r"""Jensen–Shannon divergence between the one-hot target and the prediction, weighted pi to 1 - pi.

    .. math:: \ell(z, y) = 1 + \frac{v \log v - m \log m}{-(1-\pi) \log(1-\pi)}, \qquad v = (1-\pi) p_y,\ m = \pi + v

    That is :math:`\pi\, KL(e_y \Vert \bar p) + (1-\pi)\, KL(p \Vert \bar p)` with :math:`\bar p = \pi e_y + (1-\pi) p`,
    over the denominator. Between cross entropy (pi → 0) and MAE (pi → 1).

    Args:
        pi: in (0, 1). Default: 0.7, the paper's on CIFAR-10 with 20 % and 40 % symmetric noise (0.9 with 60 % and 80 %,
            0.3 with asymmetric noise; on CIFAR-100 0.1 to 0.5).
        scaled: divide by :math:`-(1-\pi) \log(1-\pi)`, which makes the slope at :math:`p_y = 1` that of cross entropy.
            Default: True, the paper's; its WebVision runs do not.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`. Under class probabilities it is the expected loss, not the divergence from them.

    Bounds: :math:`[0, 1 + \frac{\pi \log \pi}{(1-\pi) \log(1-\pi)}]`, unscaled times the denominator. Symmetric: no.

    Raises:
        TypeError: if scaled is not a bool.
        ValueError: if pi is not in (0, 1).

    Reference:
        Englesson & Azizpour, "Generalized Jensen-Shannon Divergence Loss for Learning with Noisy Labels", NeurIPS 2021.

    Example:
        >>> import torch
        >>> input = torch.tensor([[0.0, 0.0]])  # v = 1/4, m = 3/4: 1 + (-0.3466 + 0.2158) / 0.3466
        >>> JSLoss(pi=0.5)(input, torch.tensor([1]))
        tensor(0.6226)
    """

    examples = ({"pi": 0.1, "scaled": False}, {"pi": 0.1}, {"pi": 0.9})

    def __init__(self, pi: float = 0.7, scaled: bool = True, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.pi = check_number("pi", pi, "0 < pi < 1", lambda pi: 0 < pi < 1)
        self.scaled = check_bool("scaled", scaled)

    def _logs(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        log_v = log_p + math.log1p(-self.pi)
        return log_v, torch.logaddexp(log_v, log_v.new_full((), math.log(self.pi)))

    @property
    def _scale(self) -> float:
        return 1.0 if self.scaled else self._most

    @property
    def _most(self) -> float:
        return -(1 - self.pi) * math.log1p(-self.pi)

    def f(self, log_p: Tensor) -> Tensor:
        log_v, log_m = self._logs(log_p)
        return self._scale + (x_log_x(log_v) - x_log_x(log_m)) * (self._scale / self._most)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        log_v, log_m = self._logs(log_p)
        return torch.exp(log_v) * (log_v - log_m) * (self._scale / self._most)
