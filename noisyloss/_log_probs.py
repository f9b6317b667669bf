"""All that touches an N×C tensor: log-softmax, the target's entry, sums over the classes, and their gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASS_DIM = 1

# Below this many elements the fused node's Python costs more than the second N×C buffer that it saves.
_FUSE_FROM = 1 << 16


class ClassFunction(Protocol):
    """A scalar function of a log-probability, with what is needed to sum it over the classes."""

    def f(self, log_p: Tensor) -> Tensor:
        """Apply the function elementwise."""
        ...

    def derivative(self, log_p: Tensor) -> Tensor | float:
        """Give df / dlog_p elementwise; a float where it is constant."""
        ...


def log_probs(input: Tensor) -> Tensor:
    """Log-softmax over the classes, in float32 at least: half a dozen digits are too few for log-probabilities."""
    half = input.dtype in (torch.float16, torch.bfloat16)
    return F.log_softmax(input, CLASS_DIM, dtype=torch.float32 if half else None)


def one_minus_p(log_p: Tensor) -> Tensor:
    """``1 - p``, to full relative precision, and no smaller than eps so that its powers keep finite gradients."""
    return -torch.expm1(log_p.clamp(max=-torch.finfo(log_p.dtype).eps))


def elementwise_derivative(function: ClassFunction, log_p: Tensor) -> Tensor:
    """``df / dlog_p`` by autograd, itself differentiable where a second derivative is being taken."""
    second_order = torch.is_grad_enabled()
    with torch.enable_grad():
        x = log_p if second_order else log_p.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function.f(x).sum(), x, create_graph=second_order)
    return slope


def class_sums(log_p: Tensor, functions: Sequence[ClassFunction]) -> tuple[Tensor, ...]:
    """``sum_k f(log_p[k])`` for each function, the class axis kept."""
    return tuple(function.f(log_p).sum(CLASS_DIM, keepdim=True) for function in functions)


def target_and_sums(
    log_p: Tensor, index: Tensor, functions: Sequence[ClassFunction]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``log_p[y]`` and the class sums of the functions, the class axis kept."""
    index = index.unsqueeze(CLASS_DIM)
    if functions and log_p.numel() >= _FUSE_FROM and log_p.requires_grad and not torch.compiler.is_compiling():
        log_p_y, *sums = _TargetAndSums.apply(log_p, index, *functions)
        return log_p_y, tuple(sums)
    return log_p.gather(CLASS_DIM, index), class_sums(log_p, functions)


class _TargetAndSums(torch.autograd.Function):
    """The two lines above as one node: it keeps nothing but log_p, and its backward writes a single N×C buffer."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor, index: Tensor, *functions: ClassFunction) -> tuple[Tensor, ...]:
        return log_p.gather(CLASS_DIM, index), *class_sums(log_p, functions)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        log_p, index, *ctx.functions = inputs
        ctx.save_for_backward(log_p, index)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        log_p, index = ctx.saved_tensors
        slopes = (g.expand_as(log_p) * f.derivative(log_p) for f, g in zip(ctx.functions, grad_sums, strict=True))
        grad = next(slopes)
        for slope in slopes:
            grad = grad + slope
        in_place = not torch.is_grad_enabled()  # neither a second derivative nor vmap may have its buffer overwritten
        grad = grad.scatter_add_(CLASS_DIM, index, grad_y) if in_place else grad.scatter_add(CLASS_DIM, index, grad_y)
        return grad, None, *(None for _ in ctx.functions)
