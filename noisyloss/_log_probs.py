"""All that touches an N×C tensor: log-softmax, the target's entry, sums over the classes, and their gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASS_DIM = 1

_BLOCKWISE_FROM = 1 << 19  # elements; for fewer, a node written in Python costs more than it saves
_BLOCK = 1 << 20  # elements; smaller blocks would move rows from one core's cache to another's


class ClassFunction:
    """A scalar function of a log-probability, with what is needed to sum it over the classes."""

    affine: ClassVar[tuple[float, float] | None] = None
    """(a, b) where f is a + b log_p, which spares the passes below; else None."""

    def f(self, log_p: Tensor) -> Tensor:
        """Apply the function elementwise."""
        raise NotImplementedError

    def class_sum(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        """Return ``sum_k f(log_p[k])``, the class axis kept; p is given where it is at hand and no gradient asked."""
        return self.f(log_p).sum(CLASS_DIM, keepdim=True)

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


class Bias(NamedTuple):
    """The logit bias of every sample: the largest, or what is left of it where it fades."""

    largest: float
    fades: bool = False
    valid: Tensor | None = None
    """The samples that count, of shape (N, 1, ...); all if None."""

    def of(self, input: Tensor, target: Tensor) -> Tensor:
        """Return it, of shape (N, 1, ...), for a target of that shape, class indices, or shaped like the input."""
        if not self.fades:
            return input.new_full((len(input), 1, *input.shape[2:]), self.largest, dtype=at_least_float32(input))
        with torch.no_grad():
            log_p = log_probs(input)
            p = log_p.exp()
            if target.is_floating_point():
                agreement = (target * p).sum(CLASS_DIM, keepdim=True)
            else:
                agreement = p.gather(CLASS_DIM, target)
            divergence = log_p.sub_(self.log_mean(p)).mul_(p).sum(CLASS_DIM, keepdim=True)
            return self.faded(divergence, agreement, input.shape[CLASS_DIM])

    def log_mean(self, p: Tensor) -> Tensor:
        """Return the logarithm of the mean prediction, of shape (1, C, ...)."""
        counted = p if self.valid is None else p.where(self.valid, 0.0)
        mean = counted.mean([dim for dim in range(p.dim()) if dim != CLASS_DIM], keepdim=True)
        if self.valid is not None:
            mean.div_(mean.sum())
        return mean.clamp(min=torch.finfo(p.dtype).tiny).log_()

    def faded(self, divergence: Tensor, agreement: Tensor, num_classes: int) -> Tensor:
        """Return what is left, ``largest * (1 - i**2) ** (4 * largest * r**3)``.

        i is what a prediction says of its sample, its ``divergence`` from the mean prediction over the most that can
        be. Sureness alone would not do: a network that is sure of one class whatever the sample has learned nothing.
        r is how far the surest predictions contradict their targets over how far all do. Where labels are right,
        predictions err the less the surer they are; wrong labels contradict sure and unsure ones alike.
        """
        most = math.log(max(2, min(num_classes, divergence.numel())))
        i2 = (divergence / most).square().clamp(max=1)
        sureness, contradiction = i2**4, 1 - agreement
        if self.valid is not None:
            sureness, contradiction = sureness.where(self.valid, 0.0), contradiction.where(self.valid, 0.0)
        count = divergence.numel() if self.valid is None else self.valid.sum()
        alike = (sureness.sum() * contradiction.sum()).clamp(min=torch.finfo(i2.dtype).tiny)
        r = ((sureness * contradiction).sum() * count / alike).clamp(max=1)
        return (1 - i2) ** (4 * self.largest * r**3) * self.largest


def add_bias(input: Tensor, index: Tensor, bias: Bias | Tensor | None) -> Tensor:
    """The logits, in float32 at least, with the bias on that of class ``index``."""
    input = input.to(at_least_float32(input))
    if isinstance(bias, Bias):
        bias = bias.of(input, index)
    return input if bias is None else input.scatter_add(CLASS_DIM, index, bias)


def one_minus_p(log_p: Tensor, p: Tensor | None = None) -> Tensor:
    """``1 - p``, no smaller than eps so that its powers keep finite gradients.

    To full relative precision from log_p; from p, which costs no exponential, to the absolute precision of eps.
    """
    eps = torch.finfo(log_p.dtype).eps
    return -torch.expm1(log_p.clamp(max=-eps)) if p is None else (1 - p).clamp_(min=eps)


def x_log_x(log_x: Tensor) -> Tensor:
    """``x log x``, 0 at 0, with a finite gradient down to the smallest finite ``log_x``."""
    return log_x.exp() * log_x.clamp(min=torch.finfo(log_x.dtype).min)


class _NumClasses(ClassFunction):
    """1, whose sum over the classes is their number."""

    affine = (1.0, 0.0)

    def f(self, log_p: Tensor) -> Tensor:
        return torch.ones_like(log_p)


NUM_CLASSES = _NumClasses()


class Power(ClassFunction):
    """``p ** exponent``."""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def f(self, log_p: Tensor) -> Tensor:
        return torch.exp(self.exponent * log_p)

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        return self.f(log_p).mul_(self.exponent)


def class_sums(log_p: Tensor, functions: Sequence[ClassFunction]) -> tuple[Tensor, ...]:
    """``sum_k f(log_p[k])`` for each function, the class axis kept."""
    return tuple(function.class_sum(log_p) for function in functions)


def target_and_sums(
    input: Tensor, index: Tensor, bias: Bias | None, functions: Sequence[ClassFunction]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``log_p[y]`` and the class sums of the functions, the class axis kept; the bias goes to the logit of class y."""
    if _blockwise(input, functions):
        if input.is_cuda:
            from noisyloss import _fused  # here, for it imports Triton and the losses

            if _fused.fusable(input, index, functions):
                log_p_y, *sums = _fused.target_and_sums(input, index, bias and bias.of(input, index), functions)
                return log_p_y, tuple(sums)
        log_p_y, *sums = _TargetAndSums.apply(input, index, bias, *functions)
        return log_p_y, tuple(sums)
    return _target_and_sums(input, index, bias, functions)


def _target_and_sums(
    input: Tensor, index: Tensor, bias: Bias | Tensor | None, functions: Sequence[ClassFunction]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    log_p = log_probs(input if bias is None else add_bias(input, index, bias))
    return log_p.gather(CLASS_DIM, index), class_sums(log_p, functions)


def differentiable_grad(
    input: Tensor, index: Tensor, bias: Tensor | None, functions: Sequence[ClassFunction], grads: Sequence[Tensor]
) -> Tensor:
    """The gradient in the input by plain ops, which have a derivative, as the nodes' own kernels have not."""
    log_p_y, sums = _target_and_sums(input, index, bias, functions)
    varying = [(value, grad) for value, grad in zip((log_p_y, *sums), grads, strict=True) if value.requires_grad]
    values, grads = zip(*varying, strict=True)
    (grad,) = torch.autograd.grad(values, input, grads, create_graph=True)
    return grad


def is_eager() -> bool:
    """Whether values are at hand; compilers and transforms see the lines without them."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def _blockwise(input: Tensor, functions: Sequence[ClassFunction]) -> bool:
    """Whether the node below pays, later without a sum; compilers and transforms make better of the lines above."""
    return (
        input.numel() >= (_BLOCKWISE_FROM if functions else 8 * _BLOCKWISE_FROM)
        and input.requires_grad
        and torch.is_grad_enabled()
        and is_eager()
    )


class Softmax(NamedTuple):
    """The probabilities, with two numbers of each row: ``log p = (z - peak) - rest``.

    Two, for beside a large peak the rest would be rounded away.
    """

    p: Tensor
    peak: Tensor
    rest: Tensor

    def log_p(self, input: Tensor, rows: slice) -> Tensor:
        """Return the log-probabilities of some rows, in new memory."""
        return torch.sub(input[rows], self.peak[rows]).sub_(self.rest[rows])


class _TargetAndSums(torch.autograd.Function):
    """The same as one node, which works on blocks of rows that stay in the cache and keeps p beside its inputs.

    A softmax costs what a log-softmax does, and once p is there no exponential is left to compute: log p of a class is
    its logit minus two numbers of its row, and the gradient is affine in p. Only p and the gradient are made whole, and
    most is done in their memory: fresh memory costs a page fault per 4 KB, more than the arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, index: Tensor, bias: Bias | None, *functions: ClassFunction
    ) -> tuple[Tensor, ...]:
        p = torch.empty(input.shape, dtype=at_least_float32(input), device=input.device)
        fades = bias is not None and bias.fades
        affine = any(f.affine for f in functions)
        all_rows = _row_blocks(input, spare=False)
        work = torch.empty_like(p[all_rows[0]]) if fades else p
        blocks = []
        for rows in all_rows:
            z, p_block = input[rows], p[rows]
            peak = below = p_below = z.amax(CLASS_DIM, keepdim=True).to(p.dtype)
            if affine or fades:
                z_below = torch.sub(z, peak, out=work[: len(z)] if fades else p_block)
                below = z_below.sum(CLASS_DIM, keepdim=True) if affine else peak
            torch.softmax(z, CLASS_DIM, dtype=p.dtype, out=p_block)
            if fades:
                p_below = z_below.mul_(p_block).sum(CLASS_DIM, keepdim=True)
            blocks.append((peak, p_block.amax(CLASS_DIM, keepdim=True).log_().neg_(), below, p_below))
        peak, rest, below, p_below = map(_join, zip(*blocks, strict=True))
        z_y = input.gather(CLASS_DIM, index).sub(peak)
        log_p_y = z_y - rest
        shift = None
        if bias is not None:  # log p of the others falls, that of y gains
            if fades:
                log_mean = bias.log_mean(p)
                p_log_mean = [
                    torch.mul(p[rows], log_mean, out=work[: len(p[rows])]).sum(CLASS_DIM, keepdim=True)
                    for rows in all_rows
                ]
                shift = bias.faded(p_below - rest - _join(p_log_mean), log_p_y.exp(), input.shape[CLASS_DIM])
            else:
                shift = bias.of(input, index)
            fall = torch.log1p(log_p_y.exp() * torch.expm1(shift))
            rest = rest + fall
            log_p_y = z_y - rest + shift
            below = below + shift
            p.mul_(torch.exp(-fall)).scatter_(CLASS_DIM, index, log_p_y.exp())
        softmax = Softmax(p, peak, rest)
        sum_log_p = below - input.shape[CLASS_DIM] * rest
        curved = [f for f in functions if not f.affine]
        of_rows = []
        for rows in _row_blocks(input, spare=True) if curved else ():
            log_p = _biased_log_p(softmax, input, index, shift, rows)
            of_rows.append([f.class_sum(log_p, p[rows]) for f in curved])
        of_curved = map(_join, zip(*of_rows, strict=True))
        sums = [
            f.affine[0] * input.shape[CLASS_DIM] + f.affine[1] * sum_log_p if f.affine else next(of_curved)
            for f in functions
        ]
        ctx.save_for_backward(input, index, shift, *softmax)
        ctx.functions = functions
        return (log_p_y, *sums)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        input, index, bias, p, peak, rest = ctx.saved_tensors
        softmax = Softmax(p, peak, rest)
        functions = ctx.functions
        no_grads = (None,) * (2 + len(functions))
        if torch.is_grad_enabled():
            return differentiable_grad(input, index, bias, functions, (grad_y, *grad_sums)), *no_grads
        grad = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        constants = [g * f.affine[1] for f, g in zip(functions, grad_sums, strict=True) if f.affine]
        curved = [(f, g) for f, g in zip(functions, grad_sums, strict=True) if not f.affine]
        constant = sum(constants, torch.zeros_like(grad_y))
        for rows in _row_blocks(input, spare=bool(curved)):
            y, p_block = index[rows], p[rows]
            by_log_p = constant[rows]  # of all classes, but for grad_y
            if curved:
                log_p = _biased_log_p(softmax, input, index, bias, rows)
                for f, g in curved:
                    by_log_p = f.derivative(log_p, p_block).mul_(g[rows]).add_(by_log_p)
            total = grad_y[rows] + by_log_p.expand_as(p_block).sum(CLASS_DIM, keepdim=True)
            by_z = grad[rows] if grad.dtype == p.dtype else torch.empty_like(p_block)
            torch.mul(p_block, -total, out=by_z).add_(by_log_p).scatter_add_(CLASS_DIM, y, grad_y[rows])
            if by_z.dtype != grad.dtype:
                grad[rows] = by_z
        return grad, *no_grads


def _biased_log_p(softmax: Softmax, input: Tensor, index: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
    log_p = softmax.log_p(input, rows)
    return log_p if bias is None else log_p.scatter_add_(CLASS_DIM, index[rows], bias[rows])


def _join(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(tuple(blocks))


def _row_blocks(input: Tensor, *, spare: bool) -> list[slice]:
    """Slices of rows that fit into a core's cache together, and leave room to spare for what is made of them.

    One slice where there is no such cache to fit into.
    """
    size = _BLOCK // 4 if spare else _BLOCK
    rows = max(1, size * input.shape[0] // input.numel()) if input.device.type == "cpu" else input.shape[0]
    return [slice(start, start + rows) for start in range(0, input.shape[0], rows)]
