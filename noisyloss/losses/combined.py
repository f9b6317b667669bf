"""Weighted sums of losses: active plus passive, and any other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from noisyloss._base import RobustLoss, check_number, plain_member, single_loss
from noisyloss.losses.asymmetric import AMSELoss
from noisyloss.losses.normalized import NCELoss, NFLLoss, NNCELoss, NNFLLoss
from noisyloss.losses.pointwise import LOG_OF_ZERO, CELoss, RCELoss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from typing_extensions import Unpack

    from noisyloss._base import Options
    from noisyloss._log_probs import ClassFunction

__all__ = ["ANLLoss", "APLLoss", "JALLoss", "SCELoss", "WeightedSum"]


class WeightedSum(RobustLoss):
    r"""A weighted sum of any losses; the log-probabilities are computed once for all of them.

    .. math:: \ell(z, y) = \sum_i w_i\, \ell_i(z, y)

    Args:
        losses: the members, without options of their own: these belong to the whole.
        weights: their weights, one each, at least 0.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: the weighted sum of the members' bounds. Symmetric: where every member (of weight > 0) is.

    Raises:
        TypeError: if a member is not a loss of this package.
        ValueError: if losses and weights differ in number, a weight is negative, or a member has its own options.

    Example:
        >>> import torch
        >>> from noisyloss import MAELoss, NCELoss
        >>> criterion = WeightedSum([NCELoss(), MAELoss()], [1.0, 2.0])
        >>> criterion(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # 1/4 + 2 * 3/4
        tensor(1.7500)
    """

    def __init__(self, losses: Sequence[RobustLoss], weights: Sequence[float], **options: Unpack[Options]) -> None:
        super().__init__(**options)
        losses, weights = list(losses), list(weights)
        if len(losses) != len(weights) or not losses:
            raise ValueError(f"weights: expected one for each of {len(losses)} losses, at least one; got {weights!r}")
        self.weights = [check_number(f"weights[{i}]", w, ">= 0", lambda w: w >= 0) for i, w in enumerate(weights)]
        self.losses = nn.ModuleList(plain_member(f"losses[{i}]", loss) for i, loss in enumerate(losses))
        self.sums: Sequence[ClassFunction] = [function for loss in losses for function in loss.sums]
        self._plain = all(loss._plain for loss in losses)

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        remaining = iter(sums)
        return self._weighted(lambda loss: loss.per_class(log_p, [next(remaining) for _ in loss.sums]))

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        if self._plain:
            return super()._of_index(input, index, bias)
        return self._weighted(lambda loss: loss._of_index(input, index, bias))

    def _of_all(self, input: Tensor) -> Tensor:
        return super()._of_all(input) if self._plain else self._weighted(lambda loss: loss._of_all(input))

    def _weighted(self, value_of: Callable[[RobustLoss], Tensor]) -> Tensor:
        (weight, loss), *others = self._parts()
        total = value_of(loss) if weight == 1 else weight * value_of(loss)
        for weight, loss in others:
            total = torch.add(total, value_of(loss), alpha=weight)
        return total

    def _parts(self) -> list[tuple[float, RobustLoss]]:
        return list(zip(self.weights, self.losses, strict=True))  # type: ignore[arg-type]

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        return self._added(lambda loss: loss._bounds(num_classes))

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        return self._added(lambda loss: loss._class_sum_range(num_classes, bias))

    def _added(self, range_of: Callable[[RobustLoss], tuple[float, float]]) -> tuple[float, float]:
        parts = [(w, *range_of(loss)) for w, loss in self._parts() if w]
        return sum(w * low for w, low, _ in parts), sum(w * high for w, _, high in parts)

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return the largest of the members' ratios: what minimises every member minimises the sum."""
        return max((loss._asymmetry_ratio(num_classes) for w, loss in self._parts() if w), default=math.inf)

    def _symmetry_constant(self, num_classes: int) -> float | None:
        constants = [(w, loss._symmetry_constant(num_classes)) for w, loss in self._parts() if w]
        return None if any(k is None for _, k in constants) else sum(w * k for w, k in constants if k is not None)


class _TwoTerms(WeightedSum):
    """alpha times one loss plus beta times another."""

    def __init__(
        self, first: RobustLoss, second: RobustLoss, alpha: float, beta: float, **options: Unpack[Options]
    ) -> None:
        alpha = check_number("alpha", alpha, "alpha >= 0", lambda a: a >= 0)
        beta = check_number("beta", beta, "beta >= 0", lambda b: b >= 0)
        super().__init__([first, second], [alpha, beta], **options)

    alpha = property(lambda self: self.weights[0])
    beta = property(lambda self: self.weights[1])


class APLLoss(_TwoTerms):
    r"""Active passive loss: one robust loss that pulls the target up, one that pushes the other classes down.

    .. math:: \ell(z, y) = \alpha\, \ell_{active}(z, y) + \beta\, \ell_{passive}(z, y)

    The drop-in for :class:`torch.nn.CrossEntropyLoss` where labels are wrong. Its defaults are this package's own: the
    paper's NCE + RCE after a warm-up with cross entropy that ends by itself, sample by sample, scaled so that it
    pulls no more than half as hard as cross entropy does at the start. The published loss is
    ``create_loss("nce+rce")``, or ``APLLoss(alpha=1, beta=1, warmup=False)``.

    Args:
        active: an id of :func:`list_losses` or a loss without options of its own. Default: ``"nce"``.
        passive: likewise. Default: ``"rce"``.
        alpha: the weight of the active loss, at least 0. Default: 0.1. The paper has 1 on CIFAR-10, 10 on CIFAR-100.
        beta: the weight of the passive loss, at least 0. Default: 0.2: RCE pulls with :math:`-\beta A\, p_y (1 - p_y)`,
            at most 0.46, where cross entropy pulls with :math:`1 - p_y`. The paper has 1 on CIFAR-10, 0.1 on CIFAR-100.
        **options: see :class:`CELoss`; the default of ``warmup`` is True here, unless there is a ``logit_bias``.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, ∞) with the warm-up, for cross entropy has no bound; without, :math:`[0, \alpha - \beta A]` with
    A = log(1e-4) for NCE + RCE. Symmetric: with ``warmup=False``, where both members are:
    :math:`K = \alpha - \beta A (C - 1)` for NCE + RCE.

    Raises:
        TypeError: if active or passive is neither an id nor a loss.
        ValueError: if an id is unknown, alpha or beta is negative, or a member brings its own options.

    Reference:
        Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.

    Example:
        >>> import torch
        >>> criterion = APLLoss(passive="mae", alpha=1.0, beta=2.0, warmup=False)
        >>> criterion(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # 1/4 + 2 * 3/4
        tensor(1.7500)
    """

    def __init__(
        self,
        active: str | RobustLoss = "nce",
        passive: str | RobustLoss = "rce",
        alpha: float = 0.1,
        beta: float = 0.2,
        **options: Unpack[Options],
    ) -> None:
        options.setdefault("warmup", not options.get("logit_bias"))
        active = single_loss(active, "active") if isinstance(active, str) else plain_member("active", active)
        passive = single_loss(passive, "passive") if isinstance(passive, str) else plain_member("passive", passive)
        super().__init__(active, passive, alpha, beta, **options)

    active = property(lambda self: self.losses[0])
    passive = property(lambda self: self.losses[1])


class SCELoss(_TwoTerms, id="sce"):
    r"""Symmetric cross entropy: cross entropy plus reverse cross entropy.

    .. math:: \ell(z, y) = -\alpha \log p_y - \beta A\,(1 - p_y)

    Args:
        alpha: the weight of cross entropy, at least 0. Default: 0.1, the paper's on CIFAR-10 (6 on CIFAR-100).
        beta: the weight of reverse cross entropy, at least 0. Default: 1.0, the paper's on CIFAR-10 (0.1 on CIFAR-100).
        A: stands for log 0; negative. Default: log(1e-4), see :class:`RCELoss`.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: [0, ∞). Symmetric: no, unless alpha = 0.

    Raises:
        ValueError: if alpha or beta is negative, or A is not.

    Reference:
        Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019.

    Example:
        >>> import torch
        >>> SCELoss(A=-4)(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))  # 0.1 * 2.1269 + 4 * 0.8808
        tensor(3.7359)
    """

    examples = ({"alpha": 0.0, "beta": 1.0}, {"alpha": 6.0, "beta": 0.1})

    def __init__(
        self, alpha: float = 0.1, beta: float = 1.0, A: float = LOG_OF_ZERO, **options: Unpack[Options]
    ) -> None:
        super().__init__(CELoss(), RCELoss(A), alpha, beta, **options)

    A = property(lambda self: self.losses[1].A)


def _normalized(gamma: float, detach_modulator: bool) -> NCELoss | NFLLoss:
    """Return NCE where gamma is 0, which costs less than NFL."""
    loss = NFLLoss(gamma, detach_modulator)
    return loss if gamma else NCELoss()


class ANLLoss(_TwoTerms, id={"anl-ce": {}, "anl-fl": {"gamma": 0.5}}):
    r"""Active negative loss: a normalised loss plus its normalised negative form.

    .. math:: \ell(z, y) = \alpha\, \ell_{NFL}(z, y) + \beta\, \ell_{NNFL}(z, y)

    With gamma = 0 the members are NCE and NNCE: ANL-CE. The published runs add delta times the sum of the absolute
    values of all parameters, in place of weight decay (delta = 5e-5 on CIFAR-10, 5e-7 on CIFAR-100).

    Args:
        alpha: the weight of the normalised loss, at least 0. Default: 5, the paper's on CIFAR-10 (10 on CIFAR-100).
        beta: the weight of the negative one, at least 0. Default: 5, the paper's on CIFAR-10 (1 on CIFAR-100).
        gamma: of the focal losses, see :class:`FocalLoss`. Default: 0, cross entropy; ``anl-fl`` has 0.5, the paper's.
        p_min: see :class:`NormalizedNegative`. Default: 1e-7, the published code's.
        detach_modulator: see :class:`NNFLLoss`. Default: False.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: :math:`[0, \alpha + \beta]`. Symmetric: yes, :math:`K = \alpha + \beta (C - 1)`.

    Raises:
        ValueError: if alpha, beta or gamma is negative, or p_min not in (0, 1).

    Reference:
        Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023.

    Example:
        >>> import torch
        >>> ANLLoss()(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # 5 / 4 + 5 * 3/4
        tensor(5.)
    """

    examples = ({"alpha": 10.0, "beta": 1.0, "gamma": 0.5, "detach_modulator": True},)

    def __init__(
        self,
        alpha: float = 5.0,
        beta: float = 5.0,
        gamma: float = 0.0,
        p_min: float = 1e-7,
        detach_modulator: bool = False,
        **options: Unpack[Options],
    ) -> None:
        negative = NNFLLoss(gamma, p_min, detach_modulator)
        active = _normalized(gamma, detach_modulator)
        super().__init__(active, negative if gamma else NNCELoss(p_min), alpha, beta, **options)
        self.gamma, self.detach_modulator = negative.gamma, negative.detach_modulator

    p_min = property(lambda self: self.losses[1].p_min)


class JALLoss(_TwoTerms, id={"jal-ce": {}, "jal-fl": {"gamma": 0.5}}):
    r"""Joint asymmetric loss: a normalised loss plus the asymmetric mean squared error.

    .. math:: \ell(z, y) = \alpha\, \ell_{NFL}(z, y) + \beta\, \ell_{AMSE}(z, y)

    With gamma = 0 the first is NCE: JAL-CE. The published runs add delta times the sum of the absolute values of all
    parameters, in place of weight decay (delta = 5e-5 on CIFAR-10, 5e-6 on CIFAR-100).

    Args:
        alpha: the weight of the normalised loss, at least 0. Default: 1, the paper's on CIFAR-10 (5 on CIFAR-100).
        beta: the weight of :class:`AMSELoss`, at least 0. Default: 1, the paper's.
        a: see :class:`AMSELoss`. Default: 30, the paper's on CIFAR-10 (20 on CIFAR-100).
        gamma: of the focal loss, see :class:`FocalLoss`. Default: 0, cross entropy; ``jal-fl`` has 0.5.
        detach_modulator: see :class:`NFLLoss`. Default: False.
        **options: see :class:`CELoss`.

    Shape:
        See :class:`RobustLoss`.

    Bounds: the weighted sum of those of its members; the least value is not 0. Symmetric: no.

    Raises:
        ValueError: if alpha, beta or gamma is negative, or a less than 1.

    Reference:
        Wang et al., "Joint Asymmetric Loss for Learning with Noisy Labels", ICCV 2025.

    Example:
        >>> import torch
        >>> JALLoss(a=3)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # 1/2 + (2.5**2 + 0.5**2) / 2
        tensor(3.7500)
    """

    examples = ({"alpha": 5.0, "a": 20.0, "gamma": 0.5, "detach_modulator": True},)

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        a: float = 30.0,
        gamma: float = 0.0,
        detach_modulator: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(_normalized(gamma, detach_modulator), AMSELoss(a), alpha, beta, **options)
        self.gamma, self.detach_modulator = float(gamma), detach_modulator

    a = property(lambda self: self.losses[1].a)
