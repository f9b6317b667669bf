"""What every loss shares: options, checks, targets, reduction, certificates' interface, repr and the registry."""

from __future__ import annotations

import inspect
import math
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from noisyloss._log_probs import (
    CLASS_DIM,
    ClassFunction,
    add_bias,
    at_least_float32,
    class_sums,
    is_eager,
    log_probs,
    nansum,
    spread,
    target_and_sums,
    target_sums_and_spread,
)
from noisyloss._warmup import Warmup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Reduction = Literal["none", "mean", "sum"]
LogitBias = float | Literal["auto"]


class Options(TypedDict, total=False):
    """The options of :class:`torch.nn.CrossEntropyLoss`, which mean what they mean there, and two for the start."""

    weight: Tensor | None
    ignore_index: int
    reduction: Reduction
    label_smoothing: float
    logit_bias: LogitBias
    warmup: bool


DEFAULTS: dict[str, Any] = {
    "weight": None,
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.0,
    "logit_bias": 0.0,
    "warmup": False,
}

LOSSES: dict[str, type[RobustLoss]] = {}
"""The class of every id; a class enters it by ``class NewLoss(PointwiseLoss, id="new")``.

``id={"new": {}, "newer": {"q": 2}}`` gives it one id for its defaults and one for other settings.
"""


def check_bool(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool; got {value!r}")
    return value


def check_number(name: str, value: object, condition: str, holds: Any) -> float:
    """Return ``value`` if it is a finite real number for which ``holds(value)``; ``condition`` says so in words."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, {condition}; got {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and holds(value)):
        raise ValueError(f"{name}: expected {condition}; got {value!r}")
    return float(value)


def check_logits(input: object) -> Tensor:
    """Return ``input`` if it can hold logits."""
    if not isinstance(input, Tensor) or not input.is_floating_point():
        raise TypeError(f"input: expected a floating point tensor; got {input!r}")
    if not input.dim():
        raise ValueError(f"input: expected shape (C), (N, C) or (N, C, d1, ...); got {tuple(input.shape)}")
    return input


class RobustLoss(nn.Module):
    r"""A classification loss, defined by its value for every class: ``loss(z, k)``.

    Subclasses give :meth:`per_class`; the target only says how the classes are mixed,

    .. math:: \ell(z, t) = \sum_k w_k\, t_k\, \ell(z, k),

    with class weights *w* and *t* one-hot for a class index, or any distribution over the classes.

    Args:
        weight: a weight for each class, a tensor of shape (C). Default: none.
        ignore_index: class indices with this value count for nothing. Default: -100.
        reduction: ``"mean"`` (as in :class:`torch.nn.CrossEntropyLoss`: over the sum of the targets' weights for class
            indices, over the number of samples for probabilities), ``"sum"`` or ``"none"``. Default: ``"mean"``.
        label_smoothing: the share of the uniform distribution in the target, in [0, 1]. Default: 0.0.
        logit_bias: added to the logit of the target's class while training, at least 0: the loss is that of the logits
            :math:`z + \varepsilon\, t`. It moves a network that knows nothing to where a robust loss has its gradient,
            and takes part of the robustness away. ``"auto"``: :math:`\log(C - 1)`, which puts the uniform prediction
            at :math:`p_y = 1/2`. Default: 0.0.
        warmup: pass from cross entropy to the loss while training, sample by sample:
            :math:`g\,(-\log p_y) + (1 - g)\,\ell(z, y)` with
            :math:`g = (1 - i^2)^{(14\, (v - u) / \sqrt v\, \min(1, 10 w)^8 \min(1, 1.25 r)^4)^{16}}`.
            Here i in [0, 1] is what the prediction says of its sample, its KL divergence from the mean prediction of
            the batch over :math:`\log \min(N, C)`; u is the share of targets that are not among the
            :math:`(C - 1)^{2/3}` likeliest classes, with weights :math:`i^2`, minus :math:`0.0005 / \kappa^2`, which
            is what predictions that know little add to it, and times :math:`(1 + c) / 2`; w is the highest u so far,
            and v the same, but that v fades towards u as long as the exponent of g is below 1, by
            :math:`N / (n + 102400)` of the way with every batch, where n samples have been seen in all; and r is the
            entropy of the mean prediction over its cross entropy with the mean target, less than 1 where classes are
            lost. :math:`\kappa` is Cohen's, how far predictions and targets agree beyond chance, and c is what
            predictions tell of their targets over what they claim to, in nats. Where such a number is not between 0
            and 1 it is taken as 0 or 1. All but i, v and w are of the last ten thousand samples; what makes them, v
            and w are the loss's only state.
            So it ends by itself, when labels that were unlikely begin to be memorised. Default: False.

    The last two act while the loss is in training mode and gradients are recorded, so not under :func:`torch.no_grad`.

    Shape:
        - input: logits of shape (C), (N, C) or (N, C, d1, ..., dK), with C at least 2. float16 and bfloat16 are
          computed, and returned, in float32.
        - target: class indices of shape (), (N) or (N, d1, ..., dK), or class probabilities shaped like the input.
        - output: a scalar, or with ``reduction="none"`` shaped like a target of class indices.
    """

    id: ClassVar[str | None] = None
    ids: ClassVar[dict[str, dict[str, Any]]] = {}
    """Every id, with its settings beside the defaults; :attr:`id` is the first."""
    examples: ClassVar[Sequence[dict[str, Any]]] = ()
    """Settings beside the defaults that are worth testing."""

    weight: Tensor | None
    sums: Sequence[ClassFunction] = ()
    """The functions whose sums over the classes :meth:`per_class` reads."""
    _plain: bool = True
    """Whether the loss is :meth:`per_class` of the logits' own log-softmax, which a sum computes once for all."""

    def __init_subclass__(cls, id: str | dict[str, dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.ids = {id: {}} if isinstance(id, str) else id or {}
        cls.id = next(iter(cls.ids), None)
        for one in cls.ids:
            held = LOSSES.get(one)
            if held and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"id: {one!r} is taken by {held.__module__}.{held.__qualname__}")
            LOSSES[one] = cls

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        logit_bias: LogitBias = 0.0,
        warmup: bool = False,
    ) -> None:
        super().__init__()
        if weight is not None:
            if not isinstance(weight, Tensor) or not weight.is_floating_point():
                raise TypeError(f"weight: expected a floating point tensor, one entry a class; got {weight!r}")
            if weight.dim() != 1:
                raise ValueError(f"weight: expected shape (C); got {tuple(weight.shape)}")
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise TypeError(f"ignore_index: expected an int; got {ignore_index!r}")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction: expected 'none', 'mean' or 'sum'; got {reduction!r}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, "0 <= label_smoothing <= 1", lambda s: 0 <= s <= 1
        )
        if isinstance(logit_bias, str) and logit_bias != "auto":
            raise ValueError(f"logit_bias: expected a number >= 0 or 'auto'; got {logit_bias!r}")
        self.logit_bias: LogitBias = logit_bias
        if not isinstance(logit_bias, str):
            self.logit_bias = check_number("logit_bias", logit_bias, "logit_bias >= 0", lambda e: e >= 0)
        self._warmup = Warmup() if check_bool("warmup", warmup) else None
        if self.warmup and self.logit_bias:
            raise ValueError(f"logit_bias: expected 0.0 with warmup, which needs no other start; got {logit_bias!r}")

    @property
    def warmup(self) -> bool:
        """Whether the loss begins as cross entropy."""
        return self._warmup is not None

    if TYPE_CHECKING:  # to type checkers, the call of an nn.Module gives Any

        def __call__(self, input: Tensor, target: Tensor) -> Tensor: ...

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor]) -> Tensor:
        """Return ``loss(z, k)``, where ``log_p`` holds the log-probabilities of the classes k: all, or the target's.

        ``sums`` holds ``sum_k f(log_p[k])`` for each f of :attr:`sums`, the class axis kept with length 1.
        """
        raise NotImplementedError

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the logits ``input`` under ``target``, class indices or class probabilities."""
        is_index = self._check(input, target)
        single = input.dim() == 1
        if single:
            input, target = input.unsqueeze(0), target.unsqueeze(0)
        if is_index:
            values, divisor = self._of_classes(input, target.long().unsqueeze(CLASS_DIM))
        else:
            values, divisor = self._mixed(input, target), None
        if self.reduction == "none":
            values = values.squeeze(CLASS_DIM)
            return values.squeeze(0) if single else values
        if self.reduction == "sum":
            return values.sum()
        return values.mean() if divisor is None else values.sum() / divisor

    def _of_classes(self, input: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the loss of every sample, the class axis kept, and what "mean" divides their sum by, if not by N."""
        num_classes = input.shape[CLASS_DIM]
        valid = self._valid(index, num_classes)
        if valid is not None:
            index = index.where(valid, 0)
        if self.label_smoothing:
            values = self._mixed(input, torch.zeros_like(input).scatter(CLASS_DIM, index, 1.0), valid)
        elif self._warmup is not None and self._acts():
            values = self._warming_up(self._warmup, input, index, valid)
        else:
            values = self._of_index(input, index, self._bias(num_classes))
        share = valid
        if self.weight is not None:
            share = self.weight.to(values.dtype)[index]
            share = share if valid is None else share.where(valid, 0.0)
            values = values if self.label_smoothing else values * share
        values = values if valid is None else values.where(valid, 0.0)
        return values, None if share is None else share.sum()

    def _valid(self, index: Tensor, num_classes: int) -> Tensor | None:
        """Return where ``index`` is no ``ignore_index``, or None if nowhere; only a CPU tells that without waiting."""
        if is_eager() and index.device.type == "cpu" and type(index) is Tensor and index.numel():
            low, high = map(int, index.aminmax())
            if low >= 0 and high < num_classes and not low <= self.ignore_index <= high:
                return None
            wrong = (index != self.ignore_index) & ((index < 0) | (index >= num_classes))
            if wrong.any():
                raise IndexError(
                    f"target: expected class indices from 0 to {num_classes - 1}, or ignore_index = "
                    f"{self.ignore_index}; got {int(index[wrong][0])}"
                )
        return index != self.ignore_index

    def _acts(self) -> bool:
        """Whether the options for the start act."""
        return self.training and torch.is_grad_enabled()

    def _bias(self, num_classes: int) -> float:
        """Return the logit bias, as far as it acts."""
        largest = self._largest_bias(num_classes)  # 0 with two classes, whatever the mode
        return largest if largest and self._acts() else 0.0

    def _largest_bias(self, num_classes: int) -> float:
        return math.log(num_classes - 1) if self.logit_bias == "auto" else float(self.logit_bias)

    def _warming_up(self, warmup: Warmup, input: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
        """Return the loss of every sample as far as its prediction is informed, and cross entropy as far as not."""
        log_p_y, sums, rank, seen = target_sums_and_spread(input, index, self.sums if self._plain else (), valid)
        known = log_p_y.detach(), seen.log_mean.expand(input.shape).gather(CLASS_DIM, index)
        unlikely = rank > warmup.likely(input.shape[CLASS_DIM])
        share = warmup.share(seen, [*known, *map(torch.exp, known), unlikely], valid)
        if share is None:
            return -log_p_y
        values = self.per_class(log_p_y, sums) if self._plain else self._of_index(input, index, 0.0)
        return torch.lerp(values, -log_p_y, share)

    def _mixed(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return ``sum_k w[k] t[k] loss(z, k)`` with t the smoothed target, the class axis kept."""
        input = input.to(at_least_float32(input))
        target = target.to(input.dtype)
        num_classes = input.shape[CLASS_DIM]
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        if self._warmup is not None and self._acts():
            log_p = log_probs(input)
            seen = spread(log_p, valid)
            known = log_p.detach(), seen.log_mean
            likeliest = known[0].topk(self._warmup.likely(num_classes) + 1, CLASS_DIM).values
            of_classes = *known, *map(torch.exp, known), known[0] <= likeliest.amin(CLASS_DIM, keepdim=True)
            of_targets = [nansum(target.detach() * x) for x in of_classes]
            share = self._warmup.share(seen, of_targets, valid)
            values = -log_p
            if share is not None:
                values = torch.lerp(self._of_log_probs(log_p) if self._plain else self._of_all(input), -log_p, share)
        else:
            bias = self._bias(num_classes)
            values = self._of_all(input + bias * target if bias else input)
        if self.weight is not None:
            target = target * self.weight.to(values.dtype).view(-1, *(1,) * (values.dim() - 2))
        return (target * values).sum(CLASS_DIM, keepdim=True)

    # The two ways in: the loss of one class for every sample, and of all classes. Who transforms logits overrides both.

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        """Return ``loss(z, index)``, the class axis kept, with the bias on the logit of that class."""
        log_p_y, sums = target_and_sums(input, index, bias, self.sums)
        return self.per_class(log_p_y, sums)

    def _of_all(self, input: Tensor) -> Tensor:
        """Return ``loss(z, k)`` for every class k."""
        return self._of_log_probs(log_probs(input))

    def _of_log_probs(self, log_p: Tensor) -> Tensor:
        return self.per_class(log_p, class_sums(log_p, self.sums))

    def _check(self, input: Tensor, target: Tensor) -> bool:
        """Refuse what cannot be right, by shape and dtype alone; tell whether the target holds class indices."""
        for name, tensor in (("input", input), ("target", target)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a tensor; got {type(tensor).__name__}")
        if not input.is_floating_point():
            raise TypeError(f"input: expected floating point logits; got {input.dtype}")
        shape = input.shape
        class_dim = min(CLASS_DIM, len(shape) - 1)
        if not shape or shape[class_dim] < 2:
            raise ValueError(
                f"input: expected shape (C), (N, C) or (N, C, d1, ...) with C >= 2 classes; got {tuple(shape)}"
            )
        num_classes = shape[class_dim]
        if self.weight is not None and self.weight.shape[0] != num_classes:
            raise ValueError(f"weight: expected one entry for each of {num_classes} classes; got {len(self.weight)}")
        index_shape = shape[:class_dim] + shape[class_dim + 1 :]
        if target.shape == index_shape:
            if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
                raise TypeError(
                    f"target: expected integers at shape {tuple(index_shape)}, class indices; got {target.dtype}"
                )
            return True
        if target.shape == shape:
            if not target.is_floating_point():
                raise TypeError(
                    f"target: expected floating point class probabilities at shape {tuple(shape)}; got {target.dtype}"
                )
            if self.ignore_index >= 0:
                raise ValueError(
                    f"ignore_index: expected a negative number with class probabilities; got {self.ignore_index}"
                )
            return False
        raise ValueError(
            f"target: expected class indices of shape {tuple(index_shape)} or class probabilities of shape "
            f"{tuple(shape)} for this input; got shape {tuple(target.shape)}"
        )

    # Certificates. Subclasses give `_bounds` and `_symmetry_constant` of the loss without class weights.

    def bounds(self, num_classes: int) -> tuple[float, float]:
        """Return ``(low, high)`` between which the loss of every sample lies, before reduction."""
        weights = self._class_weights(num_classes)
        own = (*self._bounds(num_classes), 0.0, math.inf) if self.warmup else self._bounds(num_classes)
        ends = [w * end if w else 0.0 for w in weights for end in own]
        return min(ends) + 0.0, max(ends) + 0.0  # + 0.0 turns -0.0 into 0.0

    def symmetry_constant(self, num_classes: int) -> float | None:
        """Return the K with ``sum_k loss(z, k) = K`` for all logits z, or None where there is none."""
        weights = self._class_weights(num_classes)
        constant = self._symmetry_constant(num_classes)
        if constant is None or len(weights) > 1 or self._largest_bias(num_classes) or self.warmup:
            return None
        return weights[0] * constant

    def class_sum_range(self, num_classes: int) -> tuple[float, float]:
        r"""Return ``(low, high)`` between which ``sum_k loss(z, k)`` lies for all z; both are K where it is constant.

        It bounds what symmetric noise of rate :math:`\eta < (C-1)/C` can do to a loss that is not symmetric: the clean
        risk of the noisy risk's minimiser exceeds the least one by at most
        :math:`\frac{\eta}{C-1} (high - low) / (1 - \frac{\eta C}{C-1})`.
        """
        constant = self.symmetry_constant(num_classes)
        if constant is not None:
            return constant, constant
        weights = self._class_weights(num_classes)
        if len(weights) == 1 and not self.warmup:
            low, high = self._class_sum_range(num_classes, self._largest_bias(num_classes))
            return (weights[0] * low, weights[0] * high) if weights[0] else (0.0, 0.0)
        low, high = self.bounds(num_classes)
        return num_classes * low, num_classes * high

    def noise_tolerance(self, num_classes: int) -> float:
        r"""Return the rate of symmetric label noise below which the minimiser of the clean risk provably stays.

        A symmetric loss has the noisy risk :math:`(1 - \frac{\eta C}{C-1}) R(f) + \frac{\eta K}{C-1}`, which is
        minimised where the clean risk R is, for every :math:`\eta < (C-1)/C` (Ghosh, Kumar & Sastry, AAAI 2017).
        For other losses nothing is proved here: 0.0.
        """
        return 0.0 if self.symmetry_constant(num_classes) is None else (num_classes - 1) / num_classes

    def asymmetry_ratio(self, num_classes: int) -> float:
        r"""Return the ratio of the clean label's weight to any other's from which the loss is provably *asymmetric*.

        A loss is asymmetric on the weights w if :math:`\sum_k w_k\, \ell(z, k)` is least where the network is sure of
        the class with the largest weight (Zhou et al., ICML 2021). Under label noise these are the shares in which a
        sample's labels come. 1.0: whatever the weights, as of symmetric pointwise losses. Infinite: nothing is proved.
        """
        if len(self._class_weights(num_classes)) > 1 or self._largest_bias(num_classes) or self.warmup:
            return math.inf
        return self._asymmetry_ratio(num_classes)

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        return -math.inf, math.inf

    def _symmetry_constant(self, num_classes: int) -> float | None:
        return None

    def _asymmetry_ratio(self, num_classes: int) -> float:
        return math.inf

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        """Return the range of the sum under every logit bias from 0 to this; a bias only lowers a loss."""
        low, high = (num_classes * end for end in self._bounds(num_classes))
        constant = self._symmetry_constant(num_classes)
        if constant is None:
            return low, high
        return low if bias else constant, constant

    def _class_weights(self, num_classes: int) -> list[float]:
        """Return the distinct class weights."""
        if isinstance(num_classes, bool) or not isinstance(num_classes, int):
            raise TypeError(f"num_classes: expected an int; got {num_classes!r}")
        if num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2; got {num_classes}")
        if self.weight is None:
            return [1.0]
        if len(self.weight) != num_classes:
            raise ValueError(f"num_classes: expected {len(self.weight)}, the length of weight; got {num_classes}")
        return sorted(set(self.weight.tolist()))

    # What the loss says of itself.

    @classmethod
    def hyperparameter_names(cls) -> list[str]:
        """Return the names of the constructor's arguments that are not options of every loss."""
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [name for name, p in inspect.signature(cls).parameters.items() if p.kind is positional]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every hyper-parameter with its value, those of the members of a combined loss included."""
        own = {name: getattr(self, name) for name in self.hyperparameter_names()}
        found = {name: value for name, value in own.items() if not _members(value)}
        for member in (member for value in own.values() for member in _members(value)):
            for name, value in member.hyperparameters.items():
                clash = found.get(name, value) != value
                found[f"{type(member).__name__}.{name}" if clash else name] = value
        return found

    def _describe(self, **more: object) -> str:
        settings = {name: getattr(self, name) for name in self.hyperparameter_names()} | more
        return f"{type(self).__name__}({', '.join(f'{name}={_show(value)}' for name, value in settings.items())})"

    def __repr__(self) -> str:
        return self._describe(**{name: getattr(self, name) for name in DEFAULTS})


def _members(value: object) -> list[RobustLoss]:
    return [m for m in (value if isinstance(value, nn.ModuleList) else [value]) if isinstance(m, RobustLoss)]


def convex_envelope(f: Callable[[Sequence[float]], list[float]], x: float) -> float:
    """Return the least value at x of all chords of f over [0, 1], those of length 0 included."""
    grid = np.linspace(0, 1, 513)
    left, right = grid[grid < x], grid[grid > x, None]
    f_x, *values = np.array(f([x, *grid]))
    share = (x - left) / (right - left)
    chords = (1 - share) * np.array(values)[grid < x] + share * np.array(values)[grid > x, None]
    return float(min(f_x, chords.min(initial=np.inf)))


def _show(value: object) -> str:
    if isinstance(value, nn.ModuleList):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, RobustLoss):
        return value._describe()
    if isinstance(value, Tensor):
        return str(value.tolist()) if len(value) <= 10 else f"<{len(value)} entries>"
    return repr(value)


def plain_member(name: str, loss: object) -> Any:
    """Return ``loss`` if it can be a member of a combined loss: one of ours, without options of its own."""
    if not isinstance(loss, RobustLoss):
        raise TypeError(f"{name}: expected a loss of this package; got {loss!r}")
    if loss.weight is not None or any(getattr(loss, key) != DEFAULTS[key] for key in DEFAULTS if key != "weight"):
        raise ValueError(f"{name}: expected a loss without options of its own, they belong to the whole; got {loss!r}")
    return loss


def loss_class(id: str, name: str = "id") -> type[RobustLoss]:
    """Return the class registered under ``id``, which is the argument ``name``."""
    if id not in LOSSES:
        raise ValueError(f"{name}: expected one of {', '.join(sorted(LOSSES))}; got {id!r}")
    return LOSSES[id]


def single_loss(id: str, name: str = "id", **settings: Any) -> RobustLoss:
    """Return the loss registered under ``id``, which is the argument ``name``."""
    return loss_class(id, name)(**LOSSES[id].ids[id] | settings)


class LinkedLoss(RobustLoss):
    """A loss of transformed logits: ``loss(link(z), k)``; the logit bias comes first."""

    _plain = False

    def link(self, input: Tensor) -> Tensor:
        """Return what stands for the logits, classes along axis 1; in float32 at least, as ``input``."""
        raise NotImplementedError

    def _of_index(self, input: Tensor, index: Tensor, bias: float) -> Tensor:
        return super()._of_index(self.link(add_bias(input, index, bias)), index, 0.0)

    def _of_all(self, input: Tensor) -> Tensor:
        return super()._of_all(self.link(input))


class PointwiseLoss(RobustLoss, ClassFunction):
    """A loss that is a function of the target's probability alone: ``loss(z, k) = f(log_p[k])``.

    Subclasses give :meth:`f`, which must not increase with the probability; its range and its symmetry are read off it.
    """

    def f(self, log_p: Tensor) -> Tensor:
        """Return the loss of a target with log-probability ``log_p``, elementwise."""
        raise NotImplementedError

    def per_class(self, log_p: Tensor, sums: Sequence[Tensor] = ()) -> Tensor:
        """Return ``f(log_p)``."""
        return self.f(log_p)

    @torch.no_grad()
    def at(self, p: Sequence[float]) -> list[float]:
        """Return f at the probabilities ``p``, in float64."""
        return self.f(torch.tensor(p, dtype=torch.float64, device="cpu").log()).tolist()

    def _bounds(self, num_classes: int) -> tuple[float, float]:
        low, high = self.at([1.0, 0.0])
        return low, high

    def _class_sum_range(self, num_classes: int, bias: float) -> tuple[float, float]:
        """Return Jensen's bounds, by the convex envelope of the biased f and the concave one of f."""

        def biased(p: Sequence[float]) -> list[float]:
            odds = math.exp(bias)
            return self.at([odds * x / (1 + (odds - 1) * x) for x in p])

        uniform = 1 / num_classes
        high = -convex_envelope(lambda p: [-value for value in self.at(p)], uniform)
        return num_classes * convex_envelope(biased, uniform), num_classes * high

    def _symmetry_constant(self, num_classes: int) -> float | None:
        """Return sum_k f, which is constant on the simplex just where f is affine in p (with 3 classes and more)."""
        p = torch.linspace(0, 1, 65, dtype=torch.float64, device="cpu").tolist()
        values = self.at(p)
        at_0, at_1 = values[0], values[-1]
        if not math.isfinite(at_0) or any(
            not math.isclose(value, at_0 + (at_1 - at_0) * x, rel_tol=1e-12, abs_tol=1e-12)
            for x, value in zip(p, values, strict=True)
        ):
            return None
        return num_classes * at_0 + (at_1 - at_0)

    def _asymmetry_ratio(self, num_classes: int) -> float:
        """Return 1 where f is affine in p, as a weighted mean of probabilities is largest at a vertex."""
        return math.inf if self._symmetry_constant(num_classes) is None else 1.0
