"""Losses that need more than (input, target): several views of each sample, or its place in the training set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from noisyloss._base import DEFAULTS, RobustLoss, _show, check_number
from noisyloss._log_probs import CLASS_DIM, log_probs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from noisyloss._base import Reduction

__all__ = ["ELRLoss", "GJSLoss"]


class MoreOptions(TypedDict, total=False):
    """The options of :class:`torch.nn.CrossEntropyLoss`; there is no logit bias here."""

    weight: Tensor | None
    ignore_index: int
    reduction: Reduction
    label_smoothing: float


class _Values(RobustLoss):
    """Targets, weights and reduction for values that somebody else has computed for every class."""

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        return input.gather(CLASS_DIM, index)

    def _of_all(self, input: Tensor) -> Tensor:
        return input


class _OwnFrontDoor(nn.Module):
    """A loss that computes its value for every class from what it needs; :class:`_Values` does the rest."""

    def __init__(self, **options: Unpack[MoreOptions]) -> None:
        super().__init__()
        unknown = [name for name in options if name not in MoreOptions.__annotations__]
        if unknown:
            known = ", ".join(MoreOptions.__annotations__)
            raise TypeError(f"{unknown[0]}: no option of {type(self).__name__}, which has {known}")
        self.values = _Values(**options)

    def _check(self, name: str, input: object, target: Tensor) -> None:
        """Refuse an input or a target that does not fit; the input goes by this name."""
        if not isinstance(input, Tensor):
            raise TypeError(f"{name}: expected a tensor; got {type(input).__name__}")
        self.values._check(input, target)

    def _describe(self, **settings: object) -> str:
        settings |= {name: getattr(self.values, name) for name in DEFAULTS if name in MoreOptions.__annotations__}
        return f"{type(self).__name__}({', '.join(f'{name}={_show(value)}' for name, value in settings.items())})"


class GJSLoss(_OwnFrontDoor):
    r"""Generalised Jensen-Shannon divergence between the label and the predictions for several views of a sample.

    .. math:: \ell(z^{(1)}, \dots, z^{(V)}, y) = \frac{1}{Z} \Bigl[ \pi\, D(e_y \,\Vert\, m)
        + \frac{1 - \pi}{V} \sum_v D(p^{(v)} \,\Vert\, m) \Bigr], \qquad
        m = \pi e_y + \frac{1 - \pi}{V} \sum_v p^{(v)}

    with D the Kullback-Leibler divergence and :math:`Z = -(1-\pi) \log(1-\pi)`. It is the Jensen-Shannon loss of the
    views' mean prediction plus their disagreement, so it asks for predictions that agree with the label, if they can,
    and with each other. With one view it is the Jensen-Shannon loss.

    It is called ``criterion(views, target)``: with a sequence of logits, one tensor for each augmentation of the batch,
    from as many passes through the network.

    Args:
        pi: the label's weight, in (0, 1); towards 0 the loss becomes cross entropy, towards 1 mean absolute error.
            Default: 0.9, the official script's for CIFAR-10 with 40 % symmetric noise (asymmetric 40 %: 0.3; CIFAR-100:
            0.5 and 0.1).
        **options: ``weight``, ``ignore_index``, ``reduction``, ``label_smoothing``, see :class:`CELoss`; nothing
            for the start.

    Shape:
        - views: a sequence of logits, each of shape (C), (N, C) or (N, C, d1, ..., dK).
        - target, output: as of every loss, see :class:`RobustLoss`. A soft target gives the expected loss, not the
          divergence from the soft target.

    Bounds: [0, h/Z] for any number of views, where h is the largest entropy of m: :math:`\log C` if
    :math:`\pi \le 1/C`, else :math:`-\pi \log \pi - (1 - \pi) \log \frac{1 - \pi}{C - 1}`. Symmetric: no.

    Raises:
        TypeError: if views is not a sequence of tensors, or there is another option.
        ValueError: if pi is out of range, or views is empty or their shapes differ.

    Reference:
        Englesson & Azizpour, "Generalized Jensen-Shannon Divergence Loss for Learning with Noisy Labels", NeurIPS 2021.

    Example:
        >>> views = torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([[0.0, 40.0, 0.0]])  # sure, and sure of another
        >>> criterion = GJSLoss(pi=0.5)
        >>> criterion(views, torch.tensor([0]))  # m = (3/4, 1/4, 0) has entropy 0.5623; Z = 0.3466
        tensor(1.6226)
    """

    def __init__(self, pi: float = 0.9, **options: Unpack[MoreOptions]) -> None:
        super().__init__(**options)
        self.pi = check_number("pi", pi, "0 < pi < 1", lambda pi: 0 < pi < 1)

    if TYPE_CHECKING:

        def __call__(self, views: Sequence[Tensor], target: Tensor) -> Tensor: ...

    def forward(self, views: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss of the logits of all views under ``target``, class indices or class probabilities."""
        if isinstance(views, Tensor) or not isinstance(views, Sequence):
            raise TypeError(f"views: expected a sequence of tensors; got {type(views).__name__}")
        if not views:
            raise ValueError("views: expected at least one; got none")
        for i, view in enumerate(views):
            self._check(f"views[{i}]", view, target)
            if view.shape != views[0].shape:
                shapes = tuple(views[0].shape), tuple(view.shape)
                raise ValueError(f"views[{i}]: expected the shape {shapes[0]} of views[0]; got {shapes[1]}")
        if views[0].dim() == 1:
            return self.values(self._per_class([view.unsqueeze(0) for view in views]).squeeze(0), target)
        return self.values(self._per_class(views), target)

    def _per_class(self, views: Sequence[Tensor]) -> Tensor:
        """Return the loss for every class k: only entry k of the mixture m depends on k."""
        log_p = torch.stack([log_probs(view) for view in views])
        log_mean = log_p.logsumexp(0) - math.log(len(views))
        disagreement = (log_p.exp() * (log_p - log_mean)).sum(CLASS_DIM + 1).mean(0).unsqueeze(CLASS_DIM)
        rest = (1 - self.pi) * log_mean.exp()
        log_m = torch.log(self.pi + rest)
        label = rest * (log_mean - log_m) - self.pi * log_m  # and what the rest of m has in common for all k:
        common = (1 - self.pi) * (math.log1p(-self.pi) * (log_mean.exp() - 1) + disagreement)
        return (label + common) / self._scale

    @property
    def _scale(self) -> float:
        return -(1 - self.pi) * math.log1p(-self.pi)

    def bounds(self, num_classes: int) -> tuple[float, float]:
        """Return ``(low, high)`` between which the loss of every sample lies, without class weights."""
        self.values._class_weights(num_classes)  # which checks the number
        if self.pi <= 1 / num_classes:
            return 0.0, math.log(num_classes) / self._scale
        rest = 1 - self.pi
        return 0.0, (-self.pi * math.log(self.pi) - rest * math.log(rest / (num_classes - 1))) / self._scale

    def __repr__(self) -> str:
        return self._describe(pi=self.pi)


class ELRLoss(_OwnFrontDoor):
    r"""Early-learning regularisation: cross entropy that is held to what the network predicted for a sample before.

    .. math:: \ell_i(z, y) = -\log p_y + \lambda \log(1 - \langle t_i, \hat p \rangle), \qquad
        t_i \leftarrow \beta\, t_i + (1 - \beta)\, \hat p / \textstyle\sum_k \hat p_k

    :math:`\hat p` is p clamped to [p_min, 1 - p_min]. The gradient takes the memory :math:`t_i` as a constant.

    It is called ``criterion(input, target, index)``: ``index`` holds the place of each sample in the training set. The
    memory, ``num_samples`` by ``num_classes`` numbers, is a buffer: it moves with :meth:`torch.nn.Module.to` and is
    saved in the ``state_dict``. It changes in training mode with gradients recorded, and then alone, before the loss
    is taken (in the official code also in evaluation).

    Args:
        num_samples: the number of training samples.
        num_classes: the number C of classes.
        beta: how slowly the memory follows, in [0, 1). Default: 0.7, the official one for CIFAR-10 with symmetric noise
            (0.9 for asymmetric noise and CIFAR-100).
        lam: the weight of the regulariser, at least 0. Default: 3.0, the official one for CIFAR-10 with symmetric noise
            (1 for asymmetric noise, 7 for CIFAR-100).
        p_min: the clamp of the probabilities in the regulariser, in (0, 1/2); beyond it they have no gradient there.
            Default: 1e-4, the official code's.
        **options: ``weight``, ``ignore_index``, ``reduction``, ``label_smoothing``, see :class:`CELoss`; class weights
            multiply both terms. Nothing for the start.

    Shape:
        - input: logits of shape (N, C).
        - target: class indices of shape (N) or class probabilities of shape (N, C).
        - index: integers of shape (N) in [0, num_samples - 1].
        - output: a scalar, or of shape (N) with ``reduction="none"``.

    Bounds: :math:`[\lambda \log p_{min}, \infty)`. Symmetric: no.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a number is out of range, or a shape does not fit.

    Reference:
        Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020.

    Example:
        >>> criterion = ELRLoss(num_samples=50, num_classes=2, beta=0.5, lam=2.0)
        >>> input, target, index = torch.tensor([[0.0, 0.0]]), torch.tensor([1]), torch.tensor([7])
        >>> criterion(input, target, index)  # t = (1/4, 1/4), so log(2) + 2 log(3/4)
        tensor(0.1178)
        >>> criterion.memory[7]
        tensor([0.2500, 0.2500])
    """

    memory: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        beta: float = 0.7,
        lam: float = 3.0,
        p_min: float = 1e-4,
        **options: Unpack[MoreOptions],
    ) -> None:
        super().__init__(**options)
        for name, value, least in (("num_samples", num_samples, 1), ("num_classes", num_classes, 2)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int; got {value!r}")
            if value < least:
                raise ValueError(f"{name}: expected at least {least}; got {value}")
        self.beta = check_number("beta", beta, "0 <= beta < 1", lambda b: 0 <= b < 1)
        self.lam = check_number("lam", lam, "lam >= 0", lambda lam: lam >= 0)
        self.p_min = check_number("p_min", p_min, "0 < p_min < 1/2", lambda p: 0 < p < 0.5)
        self.register_buffer("memory", torch.zeros(num_samples, num_classes))

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, target: Tensor, index: Tensor) -> Tensor: ...

    def forward(self, input: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Return the loss of the logits of the training samples ``index`` under ``target``."""
        self._check("input", input, target)
        if input.dim() != 2 or input.shape[1] != self.memory.shape[1]:
            raise ValueError(f"input: expected shape (N, {self.memory.shape[1]}); got {tuple(input.shape)}")
        if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
            got = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"index: expected a tensor of integers; got {got}")
        if index.shape != input.shape[:1]:
            raise ValueError(f"index: expected shape ({len(input)},), one for each sample; got {tuple(index.shape)}")
        log_p = log_probs(input)
        clamped = log_p.exp().clamp(self.p_min, 1 - self.p_min)
        memory = self._remember(clamped.detach(), index.long()).to(log_p.dtype)
        regulariser = torch.log1p(-(memory * clamped).sum(1, keepdim=True))
        return self.values(self.lam * regulariser - log_p, target)

    @torch.no_grad()
    def _remembered(self, clamped: Tensor, index: Tensor) -> Tensor:
        """Return what the memory becomes with these predictions."""
        p = (clamped / clamped.sum(1, keepdim=True)).to(self.memory.dtype)
        return self.beta * self.memory[index] + (1 - self.beta) * p

    def _remember(self, clamped: Tensor, index: Tensor) -> Tensor:
        """Return the memory of the samples, brought up to date while training."""
        if not (self.training and torch.is_grad_enabled()):
            return self.memory[index]
        memory = self._remembered(clamped, index)
        self.memory.index_copy_(0, index, memory)
        return memory

    def bounds(self, num_classes: int) -> tuple[float, float]:
        """Return ``(low, high)`` between which the loss of every sample lies, without class weights."""
        self.values._class_weights(num_classes)  # which checks the number
        return self.lam * math.log(self.p_min), math.inf

    def __repr__(self) -> str:
        num_samples, num_classes = self.memory.shape
        return self._describe(
            num_samples=num_samples, num_classes=num_classes, beta=self.beta, lam=self.lam, p_min=self.p_min
        )
