"""Losses of transformed logits: clipped, normalised, softplus scores, tempered softmax."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from noisyloss._base import (
    LinkedLoss,
    PointwiseLoss,
    RobustLoss,
    check_logits,
    check_number,
    loss_class,
    plain_member,
)
from noisyloss._log_probs import (
    CLASS_DIM,
    Power,
    add_bias,
    at_least_float32,
    class_sums,
    is_eager,
    log_probs,
    one_minus_p,
    row_blocks,
    target_and_sums,
)
from noisyloss._registry import create_loss
from noisyloss.losses.combined import WeightedSum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from noisyloss._base import Options
    from noisyloss._log_probs import ClassFunction

__all__ = ["BiTemperedLoss", "LDRLoss", "LogitClip", "SparseRegularization", "clip_logits"]

LEAST_NORM = 1e-3
"""What a normalised vector is divided by at least: the gradient at zero is large then, not infinite."""


def clip_logits(input: Tensor, tau: float) -> Tensor:
    r"""Clip the norm of the logits of every sample: :math:`z \cdot \min(1, \tau / \lVert z \rVert_2)`.

    Args:
        input: logits of shape (C), (N, C) or (N, C, d1, ..., dK).
        tau: the largest norm, which longer vectors get; positive. In the official code the norm where clipping starts
            and the norm it ends at are each other's reciprocals, so that logits jump; here, as in the paper, both are
            tau.

    Returns:
        The clipped logits; those of half precision in float32, as the losses are.

    Raises:
        TypeError: if the input is no tensor of floating point numbers, or tau no number.
        ValueError: if tau is not positive and finite, or the input has no axis.

    Reference:
        Wei et al., "Mitigating Memorization of Noisy Labels by Clipping the Model Prediction", ICML 2023.

    Example:
        >>> clip_logits(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), tau=1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    tau = check_number("tau", tau, "tau > 0", lambda tau: tau > 0)
    check_logits(input)
    return _rescale(input.to(at_least_float32(input)), tau, tau, min(CLASS_DIM, input.dim() - 1))


def _rescale(input: Tensor, norm: float, least: float, dim: int = CLASS_DIM) -> Tensor:
    """Return ``input * norm / max(|input|, least)``, without overflow in the squares or a root at zero."""
    scale = input.detach().abs().amax(dim, keepdim=True).clamp(min=least).reciprocal()
    square = (input * scale).square().sum(dim, keepdim=True)
    factor = norm * scale * torch.maximum(square, (least * scale) ** 2).rsqrt()
    return torch.addcmul(torch.zeros_like(factor), input, factor)  # compiled, the softmax of a bare product is slower


@functools.lru_cache
def _probability_range(num_classes: int, norm: float) -> tuple[float, float]:
    """Return the least and the largest probability of a class, over all logits of at most this norm.

    It is largest with all of the norm along ``e_y - 1/C``. The least has ``z_y <= 0`` and the largest
    ``sum_k exp(z_k)`` over the others: with the norm as the constraint these are all equal or one is larger than the
    rest (two above 1 could be moved apart, which raises the sum), so two angles are left to be searched.
    """
    rest = num_classes - 2
    longer = norm * math.sqrt(num_classes / (num_classes - 1))
    high = 1 / (1 + (num_classes - 1) * math.exp(-longer))

    def log_odds(angles: np.ndarray[Any, Any]) -> Any:
        theta, phi = np.clip(angles, 0, math.pi / 2)
        one = norm * np.sin(theta) * np.cos(phi)
        others = one if not rest else norm * np.sin(theta) * np.sin(phi) / math.sqrt(rest)
        weight = math.log(rest) if rest else -math.inf
        return norm * np.cos(theta) + np.logaddexp(one, weight + others)

    best, span = np.full(2, math.pi / 4), math.pi / 4
    for _ in range(16):
        steps = np.linspace(-span, span, 129)
        grid = best[:, None] + np.stack(np.meshgrid(steps, steps)).reshape(2, -1)
        best, span = grid[:, log_odds(grid).argmax()], span / 16
    most = float(log_odds(best[:, None])[0])
    return math.exp(-np.logaddexp(0, most)), high


def member(name: str, loss: str | RobustLoss) -> RobustLoss:
    """Return the loss, or the one with this id, if it can be a member of another."""
    if not isinstance(loss, str):
        return plain_member(name, loss)  # type: ignore[no-any-return]
    for part in loss.split("+"):
        loss_class(part, name)
    return create_loss(loss)


def bounds_within(loss: RobustLoss, num_classes: int, least: float, largest: float) -> tuple[float, float]:
    """Return the bounds of a loss whose probabilities lie between these two."""
    if isinstance(loss, PointwiseLoss):
        low, high = loss.at([largest, least])
        return low, high
    if isinstance(loss, WeightedSum):
        return loss._added(lambda part: bounds_within(part, num_classes, least, largest))
    return loss._bounds(num_classes)


class InFront(LinkedLoss):
    """A link in front of any loss, which keeps its own way in, as it may have a link of its own."""

    loss: RobustLoss

    def __init__(self, loss: str | RobustLoss, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.loss = member("loss", loss)

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        return self.loss._of_index(self.link(add_bias(input, index, bias)), index, 0.0)

    def _of_all(self, input: Tensor) -> Tensor:
        return self.loss._of_all(self.link(input))

    def _range(self, num_classes: int) -> tuple[float, float]:
        """Return two numbers between which the linked probabilities lie."""
        raise NotImplementedError

    def _member_bounds(self, num_classes: int) -> tuple[float, float]:
        return bounds_within(self.loss, num_classes, *self._range(num_classes))

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        return self._member_bounds(num_classes)

    def _symmetry_constant(self, num_classes: int) -> float | None:
        return self.loss._symmetry_constant(num_classes)

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        """Return the member's range, which a bias in front of the link can leave."""
        low, high = (num_classes * end for end in self._member_bounds(num_classes))
        if bias:
            return low, high
        least, most = self.loss._class_sum_range(num_classes, 0.0)
        return max(low, least), min(high, most)


class LogitClip(InFront, id="logitclip"):
    r"""Any loss of logits whose norm is clipped.

    .. math:: \ell(z, y) = \ell_{loss}\bigl(z \cdot \min(1, \tau / \lVert z \rVert_2),\, y\bigr)

    It bounds every loss. It acts in training alone: predict with the logits as they are. Adding a constant to all
    logits changes their norm, so it changes the loss.

    Args:
        loss: an id of :func:`list_losses` or a loss without options of its own. Default: ``"ce"``.
        tau: the largest norm, which longer vectors get; positive. Default: 1.0, an element of the paper's grid
            {0.1, 0.5, 1, 1.5, ..., 5}, from which it takes the best on noisy validation labels. See
            :func:`clip_logits` for how the official code differs.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: of a pointwise loss, and of a sum of them, those of the probabilities that remain, the largest of which is
    :math:`1 / (1 + (C-1)\, e^{-\tau \sqrt{C/(C-1)}})`: [0.74, 4.32] for cross entropy with tau = 2 and C = 10.
    Of another loss its own. Symmetric: where the loss is.

    Raises:
        TypeError: if loss is neither an id nor a loss.
        ValueError: if tau is not positive and finite, or the loss brings its own options.

    Reference:
        Wei et al., "Mitigating Memorization of Noisy Labels by Clipping the Model Prediction", ICML 2023.

    Example:
        >>> criterion = LogitClip("mae", tau=1.0)
        >>> criterion(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))  # 1 / (1 + exp(0.8 - 0.6))
        tensor(0.4502)
    """

    examples = ({"tau": 30.0},)

    def __init__(self, loss: str | RobustLoss = "ce", tau: float = 1.0, **options: Unpack[Options]) -> None:
        super().__init__(loss, **options)
        self.tau = check_number("tau", tau, "tau > 0", lambda tau: tau > 0)

    def link(self, input: Tensor) -> Tensor:
        return _rescale(input, self.tau, self.tau)

    def _range(self, num_classes: int) -> tuple[float, float]:
        return _probability_range(num_classes, self.tau)


class SparseRegularization(InFront, id="sr"):
    r"""Sparse regularisation: any loss of normalised logits, plus a penalty on predictions that are not sparse.

    .. math:: \ell(z, y) = \ell_{loss}(\tilde z, y) + \lambda \sum_k \tilde p_k^{\,p}, \qquad
        \tilde z = \frac{z}{\tau \lVert z \rVert_2}, \quad \tilde p = \operatorname{softmax}(\tilde z)

    The paper multiplies lam by a constant after every epoch, 1.03 on CIFAR-10 and 1.02 on CIFAR-100. One line does it::

        criterion.lam = 1.2 * 1.03**epoch

    Normalised logits are for the loss alone: predict with the logits as they are. Adding a constant to all logits
    changes the loss. Inside of sparse regularisation the paper's GCE has q = 0.01, on CIFAR-100 0.001.

    Args:
        loss: an id of :func:`list_losses` or a loss without options of its own. Default: ``"ce"``.
        tau: the temperature, positive; the scaled logits have norm 1/tau. Default: 0.5, the official code's on CIFAR.
        p: the exponent, in (0, 1]. Default: 0.1, the official code's on CIFAR-10 (0.01 on CIFAR-100).
        lam: the weight of the penalty, at least 0; may be set at any time. Default: 1.2, where the official code starts
            on CIFAR-10 (on CIFAR-100: 4 under symmetric noise, 10 under asymmetric).
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`. Norms below 0.001 count as 0.001, so that the gradient stays finite at zero.

    Bounds: those of the loss within the probabilities that remain, as of :class:`LogitClip`, plus those of the penalty,
    which is at most :math:`\lambda C^{1-p}`; valid, not tight. Symmetric: where the loss is, if lam = 0 or p = 1.

    Raises:
        TypeError: if loss is neither an id nor a loss.
        ValueError: if a number is out of range, or the loss brings its own options.

    Reference:
        Zhou et al., "Learning with Noisy Labels via Sparse Regularization", ICCV 2021.

    Example:
        >>> criterion = SparseRegularization("mae", tau=0.5, p=0.5, lam=2.0)
        >>> criterion(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))  # p = (0.4013, 0.5987); p_0 + 2 (√p_0 + √p_1)
        tensor(3.2158)
    """

    examples = ({"tau": 0.1, "p": 1.0}, {"p": 0.01, "lam": 100.0})

    def __init__(
        self,
        loss: str | RobustLoss = "ce",
        tau: float = 0.5,
        p: float = 0.1,
        lam: float = 1.2,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(loss, **options)
        self.tau = check_number("tau", tau, "tau > 0", lambda tau: tau > 0)
        self.p = check_number("p", p, "0 < p <= 1", lambda p: 0 < p <= 1)
        self.lam = check_number("lam", lam, "lam >= 0", lambda lam: lam >= 0)

    def link(self, input: Tensor) -> Tensor:
        return _rescale(input, 1 / self.tau, LEAST_NORM)

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        scaled = self.link(add_bias(input, index, bias))
        _, (sum_of_powers,) = target_and_sums(scaled, index, 0.0, (Power(self.p),))
        return self.loss._of_index(scaled, index, 0.0) + self.lam * sum_of_powers

    def _of_all(self, input: Tensor) -> Tensor:
        scaled = self.link(input)
        (sum_of_powers,) = class_sums(log_probs(scaled), (Power(self.p),))
        return self.loss._of_all(scaled) + self.lam * sum_of_powers

    def _range(self, num_classes: int) -> tuple[float, float]:
        return _probability_range(num_classes, 1 / self.tau)

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        return self._with_penalty(self._member_bounds(num_classes), num_classes, 1)

    def _with_penalty(self, ends: tuple[float, float], num_classes: int, times: int) -> tuple[float, float]:
        """Return the range of the loss plus so many penalties: concave, least at a corner of the cube, most at 1/C."""
        least, largest = self._range(num_classes)
        top = int((1 - num_classes * least) / (largest - least)) if largest > least else 0
        between = 1 - top * largest - (num_classes - top - 1) * least
        corner = top * largest**self.p + max(between, 0.0) ** self.p + (num_classes - top - 1) * least**self.p
        scale = times * self.lam
        return ends[0] + scale * corner, ends[1] + scale * num_classes ** (1 - self.p)

    def _symmetry_constant(self, num_classes: int) -> float | None:
        constant = super()._symmetry_constant(num_classes)
        if constant is None or (self.lam and self.p < 1):
            return None
        return constant + num_classes * self.lam

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        return self._with_penalty(super()._class_sum_range(num_classes, bias), num_classes, num_classes)


class LDRLoss(LinkedLoss, id="ldr"):
    r"""Label-distributionally robust loss with a KL divergence (LDR-KL).

    .. math:: \ell(z, y) = \lambda \log \frac{1}{C} \sum_k \exp \frac{c\,[k \ne y] + s_k - s_y}{\lambda}, \qquad
        s_k = \frac{C \operatorname{softplus}(z_k)}{\sum_j \operatorname{softplus}(z_j)}

    It is :math:`\lambda\,(\mathrm{CE} - \log C)`, where CE is the cross entropy of the scores s over :math:`\lambda`
    with the margin c taken from the label's. Adding a constant to all logits changes it, and it can be negative.

    Args:
        lam: the temperature of the worst case over the labels, positive. Default: 10.0, which later papers take on
            CIFAR-10 (1 on CIFAR-100) and the official code searches among 0.1, 1 and 10.
        margin: c, by which the label's score shall exceed the others, at least 0. Default: 0.1, the official script's.
            (The official class has defaults that the script does not use: lam = 1, margin = 2.)
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`. Logits that are all far below zero are lifted, so that their scores do not vanish.

    Bounds: :math:`\bigl[\lambda \log \frac{1 + (C-1)\, e^{(c-C)/\lambda}}{C},\;
    \lambda \log \frac{1 + (C-2)\, e^{c/\lambda} + e^{(c+C)/\lambda}}{C}\bigr]`, where the label or another class has
    all of the score. Symmetric: no.

    Raises:
        ValueError: if lam is not positive or margin is negative.

    Reference:
        Zhu, Ying & Yang, "Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness
        and Adaptivity", ICML 2023.

    Example:
        >>> input = torch.tensor([[0.0, 3.0]]).expm1().log()  # softplus gives (0, 3), and s = (0, 2)
        >>> LDRLoss(lam=1.0, margin=0.5)(input, torch.tensor([0]))  # log((1 + exp(0.5 + 2)) / 2)
        tensor(1.8857)
    """

    examples = ({"lam": 0.5, "margin": 0.0}, {"lam": 1.0, "margin": 2.0})

    def __init__(self, lam: float = 10.0, margin: float = 0.1, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.lam = check_number("lam", lam, "lam > 0", lambda lam: lam > 0)
        self.margin = check_number("margin", margin, "margin >= 0", lambda c: c >= 0)

    def link(self, input: Tensor) -> Tensor:
        tail = math.log(torch.finfo(input.dtype).eps)  # up to here softplus is exp, and its shares stay under a shift
        lift = (tail - input.detach().amax(CLASS_DIM, keepdim=True)).clamp(min=0)
        scores = F.softplus(input + lift, threshold=40)
        return scores * (input.shape[CLASS_DIM] / self.lam / scores.sum(CLASS_DIM, keepdim=True))

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        """Return ``lam * log(1 + exp(c / lam) * (1 - p) / p)``, cross entropy with the margin on the label's logit."""
        log_odds = one_minus_p(log_p).log() - log_p + self.margin / self.lam
        return self.lam * torch.logaddexp(log_odds, torch.zeros_like(log_odds))

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        return super()._of_index(input, index, bias) - self.lam * math.log(input.shape[CLASS_DIM])

    def _of_all(self, input: Tensor) -> Tensor:
        return super()._of_all(input) - self.lam * math.log(input.shape[CLASS_DIM])

    def _at(self, *differences: float) -> float:
        """Return the loss if the scores of the other classes exceed the label's by these."""
        terms = [0.0, *((self.margin + difference) / self.lam for difference in differences)]
        return self.lam * float(np.logaddexp.reduce(terms) - math.log(len(terms)))

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        others = num_classes - 1
        return self._at(*[-float(num_classes)] * others), self._at(*[0.0] * (others - 1), float(num_classes))

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        """Return the sum at equal scores and at a corner: it is convex in the scores, and a bias only lowers it."""
        low, high = self._bounds(num_classes)
        equal = num_classes * self._at(*[0.0] * (num_classes - 1))
        return num_classes * low if bias else equal, low + (num_classes - 1) * high


class BiTemperedLoss(LinkedLoss, id="bitempered"):
    r"""Bi-tempered logistic loss: a bounded logarithm of probabilities with a heavy tail.

    .. math:: \ell(z, y) = -\log_{t_1} \hat p_y - \frac{1 - \sum_k \hat p_k^{\,2 - t_1}}{2 - t_1}, \qquad
        \hat p_k = \exp_{t_2}(z_k - \lambda(z))

    with :math:`\log_t x = (x^{1-t} - 1) / (1 - t)`, its inverse :math:`\exp_t`, and :math:`\lambda(z)` such that
    :math:`\hat p` sums to 1. With :math:`t_1 = t_2 = 1` it is cross entropy. :math:`\hat p` is not the softmax: use the
    largest logit for predictions, not the softmax's probabilities.

    A soft target q gives the expected loss, as everywhere here: the paper's divergence minus
    :math:`\sum_k q_k \log_{t_1} q_k + (1 - \sum_k q_k^{2-t_1}) / (2 - t_1)`, which depends on the target alone.

    Args:
        t1: the temperature of the logarithm, in [0, 1]; below 1 the loss is bounded. Default: 0.8.
        t2: the temperature of the softmax, at least 1; above 1 its tail is heavy. Default: 1.2. Both are the usual
            choice of later papers. (Below 1 probabilities can be 0; the paper does not use it against label noise.)
        num_iters: Newton's steps for :math:`\lambda`. Default: 8, which leave an error of rounding; the official code's
            5 fixed-point steps leave sums up to 3 % away from 1.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, 1 / (1 - t_1)]`. Symmetric: no.

    Raises:
        ValueError: if t1, t2 or num_iters is out of range.

    Reference:
        Amid et al., "Robust Bi-Tempered Logistic Loss Based on Bregman Divergences", NeurIPS 2019.

    Example:
        >>> criterion = BiTemperedLoss(t1=0.5, t2=1.5)
        >>> criterion(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # 2 (1 - √¼) - (1 - 4 (¼)^1.5) / 1.5
        tensor(0.6667)
    """

    examples = ({"t1": 0.0, "t2": 1.0}, {"t1": 0.2, "t2": 2.0})

    def __init__(self, t1: float = 0.8, t2: float = 1.2, num_iters: int = 8, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.t1 = check_number("t1", t1, "0 <= t1 <= 1", lambda t: 0 <= t <= 1)
        self.t2 = check_number("t2", t2, "t2 >= 1", lambda t: t >= 1)
        if isinstance(num_iters, bool) or not isinstance(num_iters, int):
            raise TypeError(f"num_iters: expected an int; got {num_iters!r}")
        if num_iters < 1:
            raise ValueError(f"num_iters: expected num_iters >= 1; got {num_iters}")
        self.num_iters = num_iters
        self.sums: Sequence[ClassFunction] = (Power(2 - self.t1),)

    def link(self, input: Tensor) -> Tensor:
        if self.t2 == 1:
            return input
        log_p: Tensor = _TemperedLogSoftmax.apply(input, self.t2, self.num_iters)
        return log_p

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        log_t1 = log_p if self.t1 == 1 else torch.expm1((1 - self.t1) * log_p) / (1 - self.t1)
        return (sums[0] - 1) / (2 - self.t1) - log_t1

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        return 0.0, math.inf if self.t1 == 1 else 1 / (1 - self.t1)

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        """Return the sum at 1/C and at a vertex: it is a sum of convex functions of p_k, and a bias only lowers it."""
        log_uniform = torch.full((1, 1), -math.log(num_classes), dtype=torch.float64, device="cpu")
        power_sum = torch.full_like(log_uniform, num_classes ** (self.t1 - 1))
        equal = num_classes * self.per_class(log_uniform, [power_sum]).item()
        return 0.0 if bias else equal, (num_classes - 1) * self._bounds(num_classes)[1]


class _TemperedLogSoftmax(torch.autograd.Function):
    """``log(exp_t(z - lambda(z)))`` over the classes, with the gradient by the implicit function theorem."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, t: float, num_iters: int) -> Tensor:
        if not is_eager():
            return _tempered_log_softmax(input, t, num_iters)
        log_p = torch.empty_like(input)
        for rows in row_blocks(input, 4):
            log_p[rows] = _tempered_log_softmax(input[rows], t, num_iters)
        return log_p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.t = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient: d log p_k = p_k^(t-1) (dz_k - d lambda), with d lambda the mean of dz under p^t."""
        (log_p,) = ctx.saved_tensors
        scaled = grad * torch.exp((ctx.t - 1) * log_p)
        return scaled - torch.softmax(ctx.t * log_p, CLASS_DIM) * scaled.sum(CLASS_DIM, keepdim=True), None, None


def _tempered_log_softmax(input: Tensor, t: float, num_iters: int) -> Tensor:
    below = input.amax(CLASS_DIM, keepdim=True) - input  # with which the solution is at least 0
    y = t - 1
    shift = torch.zeros_like(below[:, :1])
    # The power mean h = (sum_k w_k ** (-1 / y)) ** -y of w = 1 + y (below + shift) is concave in the shift and 1 at the
    # solution, so Newton's steps approach it from the left; for equal logits the first one is exact.
    # Nothing overflows, as w is at least 1, and no sum underflows, as the likeliest class adds at least 1/C.
    for _ in range(num_iters):
        excess = (below + shift).mul_(y)
        powers = torch.log1p(excess).div_(-y).exp_()
        total = powers.sum(CLASS_DIM, keepdim=True)
        slope = powers.div_(excess.add_(1)).sum(CLASS_DIM, keepdim=True)
        shift = shift - torch.expm1(-y * total.log()) / y * total**t / slope
    return torch.log1p(below.add_(shift).mul_(y)).div_(-y)
