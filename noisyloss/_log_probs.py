"""All that touches an N×C tensor: log-softmax, the target's entry, sums over the classes, and their gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASS_DIM = 1

_BLOCKWISE_FROM = 1 << 19  # elements; for fewer, a node written in Python costs more than it saves
_BLOCK = 1 << 20  # elements; smaller blocks would move rows from one core's cache to another's


class ClassFunction(Protocol):
    """A scalar function of a log-probability, with what is needed to sum it over the classes."""

    def f(self, log_p: Tensor) -> Tensor:
        """Apply the function elementwise."""
        ...

    def class_sum(self, log_p: Tensor) -> Tensor:
        """Sum the function over the classes, their axis kept."""
        ...

    def derivative(self, log_p: Tensor) -> Tensor | float:
        """Give df / dlog_p elementwise; a float where it is constant."""
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


def one_minus_p(log_p: Tensor) -> Tensor:
    """``1 - p``, to full relative precision, and no smaller than eps so that its powers keep finite gradients."""
    clamped = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return -torch.expm1(clamped) if torch.is_grad_enabled() else clamped.expm1_().neg_()


def elementwise_derivative(function: ClassFunction, log_p: Tensor) -> Tensor:
    """``df / dlog_p`` by autograd."""
    with torch.enable_grad():
        x = log_p.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function.f(x).sum(), x)
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
    """The same as one node, which works on blocks of rows that stay in the cache and keeps log_p beside its inputs.

    It writes two N×C tensors, log_p and the gradient; plain ops write one more for the target, several for each sum.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, index: Tensor, bias: Tensor | None, *functions: ClassFunction
    ) -> tuple[Tensor, ...]:
        log_p = torch.empty(input.shape, dtype=at_least_float32(input), device=input.device)
        blocks = []
        for rows in _row_blocks(input):
            block = log_p[rows]
            logits = (
                input[rows]
                if bias is None
                else block.copy_(input[rows]).scatter_add_(CLASS_DIM, index[rows], bias[rows])
            )
            torch.log_softmax(logits, CLASS_DIM, dtype=log_p.dtype, out=block)
            blocks.append((block.gather(CLASS_DIM, index[rows]), *class_sums(block, functions)))
        ctx.save_for_backward(input, index, bias, log_p)
        ctx.functions = functions
        return tuple(map(torch.cat, zip(*blocks, strict=True)))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        input, index, bias, log_p = ctx.saved_tensors
        no_grads = (None,) * (2 + len(ctx.functions))
        if torch.is_grad_enabled():
            return differentiable_grad(input, index, bias, ctx.functions, (grad_y, *grad_sums)), *no_grads
        grad = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        for rows in _row_blocks(input):
            block = log_p[rows]
            slopes = [(f.derivative(block), g[rows]) for f, g in zip(ctx.functions, grad_sums, strict=True)]
            # Fresh memory costs a page fault per 4 KB, more than the arithmetic: all is done in the gradient's own.
            by_log_p = grad[rows] if grad.dtype == block.dtype else torch.empty_like(block)
            by_log_p.copy_(sum((s * g for s, g in slopes if isinstance(s, float)), torch.zeros_like(grad_y[rows])))
            for slope, g in slopes:
                if isinstance(slope, Tensor):
                    by_log_p.addcmul_(slope, g)
            by_log_p.scatter_add_(CLASS_DIM, index[rows], grad_y[rows])
            torch.ops.aten._log_softmax_backward_data.out(by_log_p, block, CLASS_DIM, block.dtype, out=by_log_p)
            if by_log_p.dtype != grad.dtype:
                grad[rows] = by_log_p
        return grad, *no_grads


def _row_blocks(input: Tensor) -> list[slice]:
    """Slices of rows that fit into a core's cache together; one slice where there is no such cache to fit into."""
    rows = max(1, _BLOCK * input.shape[0] // input.numel()) if input.device.type == "cpu" else input.shape[0]
    return [slice(start, start + rows) for start in range(0, input.shape[0], rows)]
