"""All that touches an N×C tensor: log-softmax, the target's entry, sums over the classes, and their gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLASS_DIM = 1

_COMPILERS_TELL = torch.__version__ >= "2.5"  # whether a transform of torch.func sees the values
_LOG2_E = math.log2(math.e)
_BLOCKWISE_FROM = 1 << 18  # elements; for fewer, a node written in Python costs more than it saves
_BLOCK = 1 << 21  # elements; smaller blocks would move rows from one core's cache to another's


class ClassFunction:
    """A scalar function of a log-probability, with what is needed to sum it over the classes."""

    affine: ClassVar[tuple[float, float] | None] = None
    """(a, b) where f is a + b log_p, which spares the passes below; else None."""
    has_derivative: ClassVar[bool] = False
    """Whether :meth:`derivative` is not that by autograd, which a compiler does not trace."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.has_derivative = cls.derivative is not ClassFunction.derivative

    def f(self, log_p: Tensor) -> Tensor:
        """Apply the function elementwise."""
        raise NotImplementedError

    def terms(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        """Return f to the precision that its sum needs; p is given where it is at hand and no gradient asked."""
        return self.f(log_p)

    def class_sum(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        """Return ``sum_k f(log_p[k])``, the class axis kept; p is given as above."""
        return self.terms(log_p, p).sum(CLASS_DIM, keepdim=True)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        """Return ``df / dlog_p`` elementwise, in new memory; here by autograd."""
        if self.affine:
            return torch.full_like(log_p, self.affine[1])
        with torch.enable_grad():
            x = log_p.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.f(x).sum(), x)
        return slope


def log_probs(input: Tensor) -> Tensor:
    """Log-softmax over the classes, in float32 at least: half a dozen digits are too few for log-probabilities."""
    return F.log_softmax(input, CLASS_DIM, dtype=at_least_float32(input))


def at_least_float32(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


class Spread(NamedTuple):
    """How predictions differ from each other, without gradient; the class axis kept."""

    divergence: Tensor
    """Of every prediction from the mean, by Kullback and Leibler."""
    log_mean: Tensor
    """The logarithm of the mean prediction, of those that are counted."""


def spread(log_p: Tensor, counted: Tensor | None) -> Spread:
    """The spread of these predictions, all of which count if None."""
    log_p = log_p.detach()
    p = exp(log_p) if torch.compiler.is_compiling() else log_p.exp()  # see the odds below
    log_mean = log_of_mean(_sum_of_counted(p, counted), counted, p.numel() // p.shape[CLASS_DIM])
    divergence = nansum((log_p - log_mean).mul_(p))  # 0 log 0, of a masked class, is 0
    return Spread(divergence, log_mean)


def nansum(x: Tensor) -> Tensor:
    """The sum over the classes, the class axis kept; isnan, which is in nansum, is slow compiled."""
    if torch.compiler.is_compiling():
        return x.where(x == x, 0.0).sum(CLASS_DIM, keepdim=True)
    return x.nansum(CLASS_DIM, keepdim=True)


def _sum_of_counted(p: Tensor, counted: Tensor | None) -> Tensor:
    p = p if counted is None else p.where(counted, 0.0)
    return p.sum([dim for dim in range(p.dim()) if dim != CLASS_DIM], keepdim=True)


def log_of_mean(total: Tensor, counted: Tensor | None, num_samples: int) -> Tensor:
    """The logarithm of the mean prediction, from the sum of those counted."""
    return finite_log(total / (num_samples if counted is None else counted.sum()))


def finite_log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(p.dtype).tiny).log_()


def add_bias(input: Tensor, index: Tensor, bias: float) -> Tensor:
    """The logits, in float32 at least, with the bias on that of class ``index``."""
    input = input.to(at_least_float32(input))
    return input.scatter_add(CLASS_DIM, index, input.new_full(index.shape, bias)) if bias else input


def exp(x: Tensor, times: float = 1.0, out: Tensor | None = None) -> Tensor:
    """``exp(times * x)`` by exp2; torch.exp is MKL's on a CPU, and several times as slow if that is not Intel's."""
    return torch.mul(x, times * _LOG2_E, out=out).exp2_()


def is_at_least(x: Tensor, least: float) -> Tensor:
    """1 where x is at least that, else 0; a CPU is several times slower at making, or taking, a tensor of bools."""
    return torch.ge(x, least, out=torch.empty_like(x))


def one_minus_p(log_p: Tensor, p: Tensor | None = None) -> Tensor:
    """``1 - p``, no smaller than eps so that its powers keep finite gradients.

    To full relative precision from log_p; from p, which costs no exponential, to the absolute precision of eps.
    """
    eps = torch.finfo(log_p.dtype).eps
    return -torch.expm1(log_p.clamp(max=-eps)) if p is None else (1 - p).clamp(min=eps)


def x_log_x(log_x: Tensor, x: Tensor | None = None) -> Tensor:
    """``x log x``, 0 at 0, with a finite gradient down to the smallest finite ``log_x``."""
    return (log_x.exp() if x is None else x) * log_x.clamp(min=torch.finfo(log_x.dtype).min)


class _NumClasses(ClassFunction):
    """1, whose sum over the classes is their number."""

    affine = (1.0, 0.0)

    def f(self, log_p: Tensor) -> Tensor:
        return torch.ones_like(log_p)


NUM_CLASSES = _NumClasses()


class _LogP(ClassFunction):
    """The log-probability itself."""

    affine = (0.0, 1.0)

    def f(self, log_p: Tensor) -> Tensor:
        return log_p


LOG_P = _LogP()


class Power(ClassFunction):
    """``p ** exponent``."""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def f(self, log_p: Tensor) -> Tensor:
        return exp(log_p, self.exponent)

    def terms(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        return p.square() if p is not None and self.exponent == 2 else self.f(log_p)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return self.terms(log_p, p).mul_(self.exponent)


def class_sums(log_p: Tensor, functions: Sequence[ClassFunction]) -> tuple[Tensor, ...]:
    """``sum_k f(log_p[k])`` for each function, the class axis kept."""
    return tuple(function.class_sum(log_p) for function in functions)


def target_and_sums(
    input: Tensor, index: Tensor, bias: float, functions: Sequence[ClassFunction]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``log_p[y]`` and the class sums of the functions, the class axis kept; the bias goes to the logit of class y."""
    if not _blockwise(input):
        _, log_p_y, sums = _by_plain_ops(input, index, bias, functions)
    else:
        log_p_y, sums, _ = _by_node(input, index, bias, False, None, functions)
    return log_p_y, sums


def target_sums_and_spread(
    input: Tensor, index: Tensor, functions: Sequence[ClassFunction], counted: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Spread]:
    """The same with the rank of y, 1 for the likeliest class and the last of those that tie, and the :func:`spread`."""
    if not _blockwise(input):
        log_p, log_p_y, sums = _by_plain_ops(input, index, 0.0, functions)
        rank = (log_p >= log_p_y).sum(CLASS_DIM, keepdim=True)
        return log_p_y, sums, rank, spread(log_p, counted)
    log_p_y, sums, (rank, *found) = _by_node(input, index, 0.0, True, counted, functions)
    return log_p_y, sums, rank, Spread(*found)


def _by_plain_ops(
    input: Tensor, index: Tensor, bias: float, functions: Sequence[ClassFunction]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The log-probabilities, that of y, and the class sums."""
    input = add_bias(input, index, bias)
    if not _is_compiled_only():
        log_p = log_probs(input)
        return log_p, log_p.gather(CLASS_DIM, index), class_sums(log_p, functions)
    # The gradient becomes one pass over the classes, with one exponential, if no derivative sums over them, as that of
    # log_softmax does, or scatters, as that of gather does. It has no derivative itself, nor do compilers ask for one.
    below = input - input.detach().amax(CLASS_DIM, keepdim=True)
    # The odds are wanted twice where a sum is curved: inductor stores what holds torch.exp, and makes an exp2 again.
    odds = below.exp() if all(function.affine for function in functions) else exp(below)
    total = odds.sum(CLASS_DIM, keepdim=True)
    rest, p = total.log(), (odds * total.reciprocal()).detach()
    below_y = -F.nll_loss(below.contiguous(), index.squeeze(CLASS_DIM), reduction="none").unsqueeze(CLASS_DIM)
    return below - rest, below_y - rest, tuple(_fusable_class_sum(function, below, rest, p) for function in functions)


def _fusable_class_sum(function: ClassFunction, below: Tensor, rest: Tensor, p: Tensor) -> Tensor:
    """``sum_k f(below[k] - rest)``, with derivatives that are at hand before the backward, by the class and by row."""
    if function.affine:
        a, b = function.affine
        num_classes = below.shape[CLASS_DIM]
        sum_log_p = below.sum(CLASS_DIM, keepdim=True) - num_classes * rest if b else torch.zeros_like(rest)
        return a * num_classes + b * sum_log_p
    if not function.has_derivative:
        return function.class_sum(below - rest)
    below = below.clamp(min=torch.finfo(below.dtype).min)  # 0 log_p, of a masked class, is 0
    log_p = (below - rest).detach()
    slopes = function.derivative(log_p, p)
    by_class, by_row = (slopes * _zero(below)).sum(CLASS_DIM, keepdim=True), slopes.sum(CLASS_DIM, keepdim=True)
    return function.class_sum(log_p, p) + by_class - by_row * _zero(rest)


def _zero(x: Tensor) -> Tensor:
    """0, with a derivative of 1 in x."""
    return x - x.detach()


def differentiable_grad(
    input: Tensor, index: Tensor, bias: float, functions: Sequence[ClassFunction], grads: Sequence[Tensor | None]
) -> Tensor:
    """The gradient in the input by plain ops, which have a derivative, as the nodes' own kernels have not."""
    _, log_p_y, sums = _by_plain_ops(input, index, bias, functions)
    varying = [
        (value, grad)
        for value, grad in zip((log_p_y, *sums), grads, strict=True)
        if value.requires_grad and grad is not None
    ]
    values, grads = zip(*varying, strict=True)
    (grad,) = torch.autograd.grad(values, input, grads, create_graph=True)
    return grad


def is_eager() -> bool:
    """Whether values are at hand; compilers and transforms see the lines without them.

    To be asked before any shape: a compiler makes a guard of what it is asked, and compiles anew for other sizes.
    """
    return not (torch.compiler.is_compiling() or is_transformed())


def is_transformed() -> bool:
    """Whether a transform of :mod:`torch.func` sees the values, as far as can be told."""
    return (_COMPILERS_TELL or not torch.compiler.is_compiling()) and torch._C._are_functorch_transforms_active()


def _is_compiled_only() -> bool:
    """Whether a compiler sees the values, and surely no transform."""
    return torch.compiler.is_compiling() and _COMPILERS_TELL and not is_transformed()


def _blockwise(input: Tensor) -> bool:
    """Whether the node below pays; compilers and transforms make better of the lines above."""
    return is_eager() and input.numel() >= _BLOCKWISE_FROM and input.requires_grad and torch.is_grad_enabled()


def _by_node(
    input: Tensor,
    index: Tensor,
    bias: float,
    spreads: bool,
    counted: Tensor | None,
    functions: Sequence[ClassFunction],
) -> tuple[Tensor, tuple[Tensor, ...], Sequence[Any]]:
    """``log_p[y]``, the class sums and what is seen by a node, which need not be told of a constant."""
    varying = [function for function in functions if function is not NUM_CLASSES]
    log_p_y, *outputs = _node(input, index, varying)(input, index, bias, spreads, counted, *varying)
    left, num_classes = iter(outputs[SEEN:]), input.shape[CLASS_DIM]
    all_sums = (torch.full_like(log_p_y, num_classes) if f is NUM_CLASSES else next(left) for f in functions)
    return log_p_y, tuple(all_sums), outputs[:SEEN]


def _node(input: Tensor, index: Tensor, functions: Sequence[ClassFunction]) -> Callable[..., tuple[Any, ...]]:
    """What computes all of it as one node: kernels, or blocks of rows."""
    if input.is_cuda:
        from noisyloss import _fused  # here, for it imports Triton and the losses

        if _fused.fusable(input, index, functions):
            return _fused.target_and_sums
    return _TargetAndSums.apply  # type: ignore[no-any-return]


SEEN = 1 + len(Spread._fields)
"""What a node gives beside ``log_p[y]`` and the sums, if asked to: the rank of y and the spread."""


class _TargetAndSums(torch.autograd.Function):
    """The same as one node, which works on blocks of rows that stay in the cache, and keeps p beside its inputs.

    Or log p, where the slope of a sum wants it. Nothing else is made whole: the gradient takes its memory, unless the
    graph is kept for another backward. Fresh memory costs a page fault per 4 KB, more than the arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        index: Tensor,
        bias: float,
        spreads: bool,
        counted: Tensor | None,
        *functions: ClassFunction,
    ) -> tuple[Tensor | None, ...]:
        kept = torch.empty(input.shape, dtype=at_least_float32(input), device=input.device)
        curved = [f for f in functions if not f.affine]
        all_rows = row_blocks(input, 4 if curved else 2 if spreads else 1)
        work = torch.empty_like(kept[all_rows[0]]) if curved or spreads else None

        def split(rows: slice) -> tuple[Tensor, Tensor]:  # what is kept of these rows, and a place for what is not
            here = kept[rows]
            return here, here if work is None else work[: len(here)]

        total: Tensor | None = None
        blocks = []
        for rows in all_rows:
            here, other = split(rows)
            log_p, p = (here, other) if curved else (other, here)
            torch.log_softmax(add_bias(input[rows], index[rows], bias), CLASS_DIM, out=log_p)
            of_y = sum_log_p = divergence = rank = log_p.gather(CLASS_DIM, index[rows])
            if len(curved) < len(functions):
                sum_log_p = log_p.sum(CLASS_DIM, keepdim=True)
            if spreads:
                rank = torch.ge(log_p, of_y, out=p).sum(CLASS_DIM, keepdim=True)
            exp(log_p, out=p)
            of_curved = [f.class_sum(log_p, p) for f in curved]
            if spreads:
                sum_p = _sum_of_counted(p, None if counted is None else counted[rows])
                total = sum_p if total is None else total + sum_p
                divergence = nansum(other.mul_(here))
            blocks.append((of_y, sum_log_p, divergence, rank, *of_curved))
        log_p_y, sum_log_p, divergence, rank, *of_curved = map(_join, zip(*blocks, strict=True))
        found: Sequence[Tensor | None] = [None] * SEEN
        if total is not None:
            log_mean = log_of_mean(total, counted, index.numel())
            p_log_mean = []
            for rows in all_rows:
                here, other = split(rows)
                p = exp(here, out=other) if curved else here
                p_log_mean.append(torch.mul(p, log_mean, out=other).sum(CLASS_DIM, keepdim=True))
            found = [rank, *Spread(divergence - _join(p_log_mean), log_mean)]
            ctx.mark_non_differentiable(*found)
        left, num_classes = iter(of_curved), input.shape[CLASS_DIM]
        sums = [f.affine[0] * num_classes + f.affine[1] * sum_log_p if f.affine else next(left) for f in functions]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, index, kept)
        ctx.bias, ctx.functions = bias, functions
        return (log_p_y, *found, *sums)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        input, index, kept = ctx.saved_tensors
        bias, functions = ctx.bias, ctx.functions
        no_grads = (None,) * (4 + len(functions))
        if torch.is_grad_enabled():
            return differentiable_grad(input, index, bias, functions, (grad_y, *grads[SEEN:])), *no_grads
        grad_y = torch.zeros_like(index, dtype=kept.dtype) if grad_y is None else grad_y
        used = [(f, g) for f, g in zip(functions, grads[SEEN:], strict=True) if g is not None]
        keeps_log_p = any(not f.affine for f in functions)
        grad = kept if _is_freed() else torch.empty_like(kept)
        # Slopes in log p of every class; that of y has grad_y beside.
        constants = [g * f.affine[1] for f, g in used if f.affine]
        curved = [(f, g) for f, g in used if not f.affine]
        total = sum((constant * input.shape[CLASS_DIM] for constant in constants), grad_y)
        for rows in row_blocks(input, 4 if curved else 1):
            p = exp(kept[rows]) if keeps_log_p else kept[rows]
            slopes = [f.derivative(kept[rows], p).mul_(g[rows]) for f, g in curved]
            sums = (slope.sum(CLASS_DIM, keepdim=True) for slope in slopes)
            by_z = torch.mul(p, -sum(sums, total[rows]), out=grad[rows])
            for slope in [*slopes, *(constant[rows] for constant in constants)]:
                by_z.add_(slope)
            by_z.scatter_add_(CLASS_DIM, index[rows], grad_y[rows])
        return grad.to(input.dtype), *no_grads


def _is_freed() -> bool:
    """Whether the graph whose backward this is asked in is freed by it, and with it what the nodes keep."""
    is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)  # torch 2.4 has none
    return is_kept is not None and is_eager() and not is_kept()


def _join(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(tuple(blocks))


def row_blocks(input: Tensor, tensors: int) -> list[slice]:
    """Slices of rows of which so many tensors fit into a core's cache, the one to begin with and what is made of it.

    One slice where there is no such cache to fit into.
    """
    count = input.shape[0]
    fit = _BLOCK // tensors * count // max(1, input.numel()) if input.device.type == "cpu" else count
    rows = max(1, fit)
    return [slice(start, start + rows) for start in range(0, count, rows)]
