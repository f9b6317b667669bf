"""All that touches an N×C tensor: log-softmax, the target's entry, sums over the classes, and their gradient."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLASS_DIM = 1

_BLOCKWISE_FROM = 1 << 19  # elements; for fewer, a node written in Python costs more than it saves
_BLOCK = 1 << 20  # elements; smaller blocks would move rows from one core's cache to another's


class ClassFunction(Protocol):
    """A scalar function of a log-probability, with what is needed to sum it over the classes."""

    slope: float | None
    """df / dlog_p where that is constant, as then f is the slope times log_p; else None."""

    def class_sum(self, log_p: Tensor, p: Tensor | None = None) -> Tensor:
        """Sum the function over the classes, their axis kept; p, where it is at hand, may save an exponential."""
        ...

    def derivative(self, log_p: Tensor, p: Tensor) -> Tensor:
        """Give df / dlog_p elementwise, in new memory."""
        ...


def log_probs(input: Tensor) -> Tensor:
    """Log-softmax over the classes, in float32 at least: half a dozen digits are too few for log-probabilities."""
    return F.log_softmax(input, CLASS_DIM, dtype=at_least_float32(input))


def at_least_float32(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def add_bias(input: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
    """The logits, in float32 at least, with the bias on that of class ``index``."""
    input = input.to(at_least_float32(input))
    return input if bias is None else input.scatter_add(CLASS_DIM, index, bias.expand(index.shape))


def one_minus_p(log_p: Tensor, p: Tensor | None = None) -> Tensor:
    """``1 - p``, no smaller than eps so that its powers keep finite gradients.

    To full relative precision from log_p; from p, which costs no exponential, to the absolute precision of eps.
    """
    eps = torch.finfo(log_p.dtype).eps
    return -torch.expm1(log_p.clamp(max=-eps)) if p is None else (1 - p).clamp_(min=eps)


def elementwise_derivative(f: Callable[[Tensor], Tensor], log_p: Tensor) -> Tensor:
    """``df / dlog_p`` by autograd."""
    with torch.enable_grad():
        x = log_p.detach().requires_grad_()
        (slope,) = torch.autograd.grad(f(x).sum(), x)
    return slope


def class_sums(log_p: Tensor, functions: Sequence[ClassFunction]) -> tuple[Tensor, ...]:
    """``sum_k f(log_p[k])`` for each function, the class axis kept."""
    return tuple(function.class_sum(log_p) for function in functions)


def target_and_sums(
    input: Tensor, index: Tensor, bias: Tensor | None, functions: Sequence[ClassFunction]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``log_p[y]`` and the class sums of the functions, the class axis kept; the bias goes to the logit of class y."""
    if bias is not None:
        bias = bias.expand(index.shape)
    if _blockwise(input, functions):
        if input.is_cuda:
            from noisyloss import _fused  # here, for it imports Triton and the losses

            if _fused.fusable(input, index, functions):
                log_p_y, *sums = _fused.target_and_sums(input, index, bias, functions)
                return log_p_y, tuple(sums)
        log_p_y, *sums = _TargetAndSums.apply(input, index, bias, *functions)
        return log_p_y, tuple(sums)
    return _target_and_sums(input, index, bias, functions)


def _target_and_sums(
    input: Tensor, index: Tensor, bias: Tensor | None, functions: Sequence[ClassFunction]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    log_p = log_probs(input if bias is None else add_bias(input, index, bias))
    return log_p.gather(CLASS_DIM, index), class_sums(log_p, functions)


def differentiable_grad(
    input: Tensor, index: Tensor, bias: Tensor | None, functions: Sequence[ClassFunction], grads: Sequence[Tensor]
) -> Tensor:
    """The gradient in the input by plain ops, which have a derivative, as the nodes' own kernels have not."""
    log_p_y, sums = _target_and_sums(input, index, bias, functions)
    (grad,) = torch.autograd.grad((log_p_y, *sums), input, grads, create_graph=True)
    return grad


@torch.no_grad()
def information(input: Tensor, valid: Tensor | None) -> Tensor:
    """What every prediction says of its sample: 0 if all are the same, 1 if they are sure and differ.

    ``KL(p, mean p) / log min(N, C)``, the class axis kept, with the mean over the valid samples. Sureness alone would
    not do: a network that is sure of one class whatever the sample has learned nothing.
    """
    log_p = log_probs(input)
    p = log_p.exp()
    samples = [dim for dim in range(p.dim()) if dim != CLASS_DIM]
    counted = p if valid is None else p.where(valid.unsqueeze(CLASS_DIM), 0.0)
    total = counted.sum(samples, keepdim=True)
    mean = (total / total.sum()).clamp(min=torch.finfo(p.dtype).tiny)
    most = math.log(max(2, min(p.shape[CLASS_DIM], p.numel() // p.shape[CLASS_DIM])))
    return (log_p.sub_(mean.log_()).mul_(p).sum(CLASS_DIM, keepdim=True) / most).clamp(0, 1)


def _blockwise(input: Tensor, functions: Sequence[ClassFunction]) -> bool:
    """Whether the node below pays, later without a sum; compilers and transforms make better of the lines above."""
    return (
        input.numel() >= (_BLOCKWISE_FROM if functions else 8 * _BLOCKWISE_FROM)
        and input.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


class _TargetAndSums(torch.autograd.Function):
    """The same as one node, which works on blocks of rows that stay in the cache and keeps p beside its inputs.

    A softmax costs what a log-softmax does, and once p is there no exponential is left to compute: log p of a class is
    its logit minus two numbers of its row, and the gradient is affine in p. Only p and the gradient are made whole, and
    most is done in their memory: fresh memory costs a page fault per 4 KB, more than the arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, index: Tensor, bias: Tensor | None, *functions: ClassFunction
    ) -> tuple[Tensor, ...]:
        p = torch.empty(input.shape, dtype=at_least_float32(input), device=input.device)
        linear = any(f.slope is not None for f in functions)
        blocks = []
        for rows in _row_blocks(input, functions):
            z, y, p_block = input[rows], index[rows], p[rows]
            # log p = (z - peak) - rest: two numbers, for beside a large peak the rest would be rounded away.
            peak = z.amax(CLASS_DIM, keepdim=True).to(p.dtype)
            sum_log_p = torch.sub(z, peak, out=p_block).sum(CLASS_DIM, keepdim=True) if linear else peak
            torch.softmax(z, CLASS_DIM, dtype=p.dtype, out=p_block)
            rest = p_block.amax(CLASS_DIM, keepdim=True).log_().neg_()
            log_p_y = z.gather(CLASS_DIM, y).sub(peak).sub_(rest)
            epsilon = None if bias is None else bias[rows]
            if epsilon is not None:  # log p of the others falls, that of y gains
                fall = torch.log1p(log_p_y.exp() * torch.expm1(epsilon))
                rest += fall
                log_p_y += epsilon - fall
                sum_log_p = sum_log_p + epsilon
                p_block.mul_(torch.exp(-fall)).scatter_(CLASS_DIM, y, log_p_y.exp())
            sum_log_p = sum_log_p - input.shape[CLASS_DIM] * rest
            sums = [
                f.class_sum(_log_p(z, y, peak, rest, epsilon), p_block) if f.slope is None else f.slope * sum_log_p
                for f in functions
            ]
            blocks.append((log_p_y, peak, rest, *sums))
        log_p_y, peak, rest, *sums = map(torch.cat, zip(*blocks, strict=True))
        ctx.save_for_backward(input, index, bias, p, peak, rest)
        ctx.functions = functions
        return (log_p_y, *sums)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        input, index, bias, p, peak, rest = ctx.saved_tensors
        functions = ctx.functions
        no_grads = (None,) * (2 + len(functions))
        if torch.is_grad_enabled():
            return differentiable_grad(input, index, bias, functions, (grad_y, *grad_sums)), *no_grads
        grad = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        linear = [g * f.slope for f, g in zip(functions, grad_sums, strict=True) if f.slope is not None]
        curved = [(f, g) for f, g in zip(functions, grad_sums, strict=True) if f.slope is None]
        constant = sum(linear, torch.zeros_like(grad_y))
        for rows in _row_blocks(input, functions):
            z, y, p_block = input[rows], index[rows], p[rows]
            by_log_p = constant[rows]  # of all classes, but for grad_y
            if curved:
                log_p = _log_p(z, y, peak[rows], rest[rows], None if bias is None else bias[rows])
                slopes = [f.derivative(log_p, p_block).mul_(g[rows]) for f, g in curved]
                by_log_p = functools.reduce(Tensor.add_, [*slopes, by_log_p])
            total = grad_y[rows] + by_log_p.expand_as(z).sum(CLASS_DIM, keepdim=True)
            by_z = grad[rows] if grad.dtype == p.dtype else torch.empty_like(p_block)
            torch.mul(p_block, -total, out=by_z).add_(by_log_p).scatter_add_(CLASS_DIM, y, grad_y[rows])
            if by_z.dtype != grad.dtype:
                grad[rows] = by_z
        return grad, *no_grads


def _log_p(z: Tensor, y: Tensor, peak: Tensor, rest: Tensor, bias: Tensor | None) -> Tensor:
    log_p = torch.sub(z, peak).sub_(rest)
    return log_p if bias is None else log_p.scatter_add_(CLASS_DIM, y, bias)


def _row_blocks(input: Tensor, functions: Sequence[ClassFunction]) -> list[slice]:
    """Slices of rows that fit into a core's cache together; one slice where there is no such cache to fit into."""
    size = _BLOCK if all(f.slope is not None for f in functions) else _BLOCK // 4  # others need memory of their own
    rows = max(1, size * input.shape[0] // input.numel()) if input.device.type == "cpu" else input.shape[0]
    return [slice(start, start + rows) for start in range(0, input.shape[0], rows)]
