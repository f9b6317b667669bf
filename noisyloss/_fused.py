"""The node of ``_log_probs`` for CUDA: Triton kernels that keep nothing of size N×C but the logits, there anyway.

One kernel each way serves the whole family; a class function enters by its form in :func:`_f`, which gives f and f'.
Two more make what the warm-up asks for, the rank of y and the spread of the predictions.
This module is to be imported when the first CUDA tensor comes; it imports without Triton too.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import functools
import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisyloss._log_probs import CLASS_DIM, LOG_P, SEEN, Spread, differentiable_grad, log_of_mean
from noisyloss.losses.pointwise import CELoss, FocalLoss, GCELoss, MAELoss, RCELoss

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:  # torch's builds for a CPU, and those for Windows, come without
    triton = None

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from noisyloss._log_probs import ClassFunction

_INTERPRETED = os.getenv("TRITON_INTERPRET") == "1"  # kernels then run on a CPU, for tests
_jit: Callable[[Any], Any] = triton.jit if triton else lambda kernel: kernel

# The form of a class function, with its parameters a and b. By exact type, for a subclass may have another f.
_FORMS: dict[type, Callable[[Any], tuple[str, float, float]]] = {
    type(LOG_P): lambda f: ("linear", 1.0, 0.0),
    CELoss: lambda f: ("linear", -1.0, 0.0),
    GCELoss: lambda f: ("power", 1.0, f.q),
    MAELoss: lambda f: ("power", 1.0, 1.0),
    RCELoss: lambda f: ("power", -f.A, 1.0),
    FocalLoss: lambda f: ("detached focal" if f.detach_modulator else "focal", f.gamma, 0.0),
}


def fusable(input: Tensor, index: Tensor, functions: Sequence[ClassFunction]) -> bool:
    """Whether :func:`target_and_sums` takes these arguments, and this machine runs its kernels."""
    return (
        triton is not None
        and type(input) is Tensor  # the kernels read memory, of which subclasses (DTensor) have ideas of their own
        and (input.is_cuda or _INTERPRETED)
        and input.dim() == 2
        and input.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and input.numel() > 0
        and index.device == input.device
        and len(functions) <= 1
        and all(type(function) in _FORMS for function in functions)
        and _runs(input.device, input.dtype)
    )


@functools.cache
def _runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton builds and runs a kernel; it needs a C compiler, and a GPU that it knows and that knows dtype."""
    zeros = torch.zeros(1, 2, dtype=dtype, device=device)
    try:
        target_and_sums(zeros, zeros[:, :1].long(), 0.0, False, None)
    except Exception as error:
        warnings.warn(f"Triton does not run here, so losses are slower than they could be: {error}", stacklevel=2)
        return False
    return True


def target_and_sums(
    input: Tensor, index: Tensor, bias: float, spreads: bool, counted: Tensor | None, *functions: ClassFunction
) -> tuple[Tensor, ...]:
    """``log_p[y]``, of shape (N, 1), its rank, the spread, and the class sum; in float32.

    Args:
        input: logits of shape (N, C), which :func:`fusable` accepts.
        index: class indices of shape (N, 1).
        bias: is added to the logit of the class ``index``; 0 if the spread is asked for.
        spreads: whether to compute the rank and the spread, which are None else.
        counted: where a row belongs to the mean, of shape (N, 1); everywhere if None.
        functions: none or one.
    """
    if input.stride(CLASS_DIM) != 1:  # between rows any stride will do, such as a slice has
        input = input.contiguous()
    outputs: tuple[Tensor, ...] = _FusedTargetAndSums.apply(
        input, index.contiguous(), bias, spreads, counted, *functions
    )
    return outputs


class _FusedTargetAndSums(torch.autograd.Function):
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
        empty = functools.partial(torch.empty, dtype=torch.float32, device=input.device)
        log_p_y, sum_f, peak, log_z, sum_slope = (empty(index.shape) for _ in range(5))
        _launch(_forward, bias, functions, input, index, log_p_y, sum_f, peak, log_z, sum_slope)
        found: Sequence[Tensor | None] = [None] * SEEN
        if spreads:
            N, C = input.shape
            rank, divergence = empty(index.shape), empty(index.shape)
            sums = empty(triton.cdiv(N, _SPAN * _tile(C)[0]), C)
            log_z_counted = log_z if counted is None else log_z.where(counted, math.inf)
            _launch(_column_sums, bias, (), input, peak, log_z_counted, sums)
            log_mean = log_of_mean(sums.sum(0, keepdim=True), counted, N)
            _launch(_seen, bias, (), input, index, peak, log_z, log_mean, rank, divergence)
            found = [rank, *Spread(divergence, log_mean)]
            ctx.mark_non_differentiable(*found)
        ctx.save_for_backward(input, index, peak, log_z, sum_slope)
        ctx.bias, ctx.functions = bias, functions
        return (log_p_y, *found, *([sum_f] if functions else []))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_sums = grads[SEEN:]
        input, index, *scalars = ctx.saved_tensors
        no_grads = (None,) * (4 + len(ctx.functions))
        if torch.is_grad_enabled():
            return differentiable_grad(input, index, ctx.bias, ctx.functions, (grad_y, *grad_sums)), *no_grads
        grad = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        grad_sum = grad_sums[0].contiguous() if grad_sums else None
        _launch(_backward, ctx.bias, ctx.functions, input, index, grad_y.contiguous(), grad_sum, *scalars, grad)
        return grad, *no_grads


_SPAN = 32  # tiles below each other, of which a program makes the sums of the columns


def _tile(C: int) -> tuple[int, int]:
    """Return the rows and the classes that a program takes at once."""
    block = min(triton.next_power_of_2(C), 4096)
    return max(1, 1024 // block), block


def _launch(
    kernel: Any, bias: float, functions: Sequence[ClassFunction], input: Tensor, *tensors: Tensor | None
) -> None:
    """Run the kernel, a program a tile: BLOCK classes of one row, or several rows where they are short.

    A program goes through all tiles of its rows, or through some of its columns, if what it makes is a sum of these.
    """
    N, C = input.shape
    rows, block = _tile(C)
    row_tiles, column_tiles = triton.cdiv(N, rows), triton.cdiv(C, block)
    if kernel is _column_sums:
        row_tiles = triton.cdiv(row_tiles, _SPAN)
    grid = (row_tiles, column_tiles if kernel in (_backward, _column_sums) else 1)
    align = math.gcd(16, C, input.stride(0))
    form, a, b = _FORMS[type(functions[0])](functions[0]) if functions else ("none", 0.0, 0.0)
    sizes = {"FORM": form, "ALIGN": align, "ROWS": rows, "BLOCK": block, "num_warps": max(1, rows * block // 512)}
    with torch.cuda.device_of(input):  # Triton 3.9 warns unless it is told about fusion into multiply-adds
        kernel[grid](
            input, *tensors, N, C // align, input.stride(0) // align, bias, a, b, **sizes, enable_fp_fusion=True
        )


# In the kernels, row and the scalars of a row have shape [ROWS, 1], the classes k [1, BLOCK], and logits both. C and
# the stride between rows come divided by ALIGN and are multiplied here, so that the compiler sees what divides them
# and moves 16 bytes at once.


@_jit
def _forward(
    input, index, log_p_y, sum_f, peak, log_z, sum_slope,
    N, C, stride, bias, a, b, FORM: constexpr, ALIGN: constexpr, ROWS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    C *= ALIGN
    row = _rows(ROWS)
    in_N = row < N
    y = tl.load(index + row, mask=in_N)
    start_of_row = input + row * (stride * ALIGN)
    # For a class that there is not NaN, rather than what happens to lie there.
    x_y = tl.load(start_of_row + y, mask=in_N & (y >= 0) & (y < C), other=float("nan")).to(tl.float32) + bias

    # The log-sum-exp is peak + log_z. They are kept apart, for beside a large peak log_z would be rounded away.
    top = tl.maximum(x_y, -3.4028234663852886e38)  # finite, so that differences of tops are numbers
    z = tl.zeros([ROWS, 1], tl.float32)
    below_top = tl.zeros([ROWS, 1], tl.float32)
    for start in range(0, C, BLOCK):
        k = start + tl.arange(0, BLOCK)[None, :]
        x = _logits(start_of_row, k, y, bias, in_N & (k < C))
        new_top = tl.maximum(top, tl.max(x, axis=1, keep_dims=True))
        z = z * tl.exp(top - new_top) + tl.sum(tl.exp(x - new_top), axis=1, keep_dims=True)
        if FORM == "linear":  # needs no second pass; all terms have one sign, so nothing cancels
            below_top += start * (new_top - top)
            below_top += tl.sum(tl.where(k < C, new_top - x, 0.0), axis=1, keep_dims=True)
        top = new_top
    log_of_z = tl.log(z)
    tl.store(log_p_y + row, x_y - top - log_of_z, mask=in_N)
    tl.store(peak + row, top, mask=in_N)
    tl.store(log_z + row, log_of_z, mask=in_N)

    if FORM == "linear":
        tl.store(sum_f + row, -a * (below_top + C * log_of_z), mask=in_N)
        tl.store(sum_slope + row, tl.zeros([ROWS, 1], tl.float32) + a * C, mask=in_N)
    elif FORM != "none":
        total = tl.zeros([ROWS, 1], tl.float32)
        total_slope = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, C, BLOCK):  # the row again, from the cache
            k = start + tl.arange(0, BLOCK)[None, :]
            x = _logits(start_of_row, k, y, bias, in_N & (k < C))
            value, slope = _f(x - top - log_of_z, a, b, FORM)
            total += tl.sum(tl.where(k < C, value, 0.0), axis=1, keep_dims=True)
            total_slope += tl.sum(tl.where(k < C, slope, 0.0), axis=1, keep_dims=True)
        tl.store(sum_f + row, total, mask=in_N)
        tl.store(sum_slope + row, total_slope, mask=in_N)


@_jit
def _backward(
    input, index, grad_y, grad_sum, peak, log_z, sum_slope, grad,
    N, C, stride, bias, a, b, FORM: constexpr, ALIGN: constexpr, ROWS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    C *= ALIGN
    row = _rows(ROWS)
    in_N = row < N
    y = tl.load(index + row, mask=in_N)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = _logits(input + row * (stride * ALIGN), k, y, bias, in_N & (k < C))
    log_p = x - tl.load(peak + row, mask=in_N) - tl.load(log_z + row, mask=in_N)
    total = tl.load(grad_y + row, mask=in_N)  # the sum over the classes of by_log_p
    by_log_p = tl.where(k == y, total, 0.0)
    if FORM != "none":
        by_sum = tl.load(grad_sum + row, mask=in_N)
        _, slope = _f(log_p, a, b, FORM)
        by_log_p += by_sum * slope
        total += by_sum * tl.load(sum_slope + row, mask=in_N)
    tl.store(grad + row * C + k, by_log_p - tl.exp(log_p) * total, mask=in_N & (k < C))


@_jit
def _column_sums(
    input, peak, log_z, sums,
    N, C, stride, bias, a, b, FORM: constexpr, ALIGN: constexpr, ROWS: constexpr, BLOCK: constexpr,
    SPAN: constexpr = _SPAN,
):  # fmt: skip
    """Sum p over some rows, without those whose log_z is infinite."""
    C *= ALIGN
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([1, BLOCK], tl.float32)
    for tile in range(SPAN):
        row = (tl.program_id(0).to(tl.int64) * SPAN + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        in_N = row < N
        rest = tl.load(log_z + row, mask=in_N, other=float("inf"))
        x = _values(input + row * (stride * ALIGN) + k, in_N & (k < C))
        p = tl.exp(x - tl.load(peak + row, mask=in_N) - rest)
        total += tl.sum(tl.where(rest == float("inf"), 0.0, p), axis=0, keep_dims=True)
    tl.store(sums + tl.program_id(0).to(tl.int64) * C + k, total, mask=k < C)


@_jit
def _seen(
    input, index, peak, log_z, log_mean, rank, divergence,
    N, C, stride, bias, a, b, FORM: constexpr, ALIGN: constexpr, ROWS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    C *= ALIGN
    row = _rows(ROWS)
    in_N = row < N
    y = tl.load(index + row, mask=in_N)
    start_of_row = input + row * (stride * ALIGN)
    x_y = _values(start_of_row + y, in_N & (y >= 0) & (y < C))
    top, rest = tl.load(peak + row, mask=in_N), tl.load(log_z + row, mask=in_N)
    number = tl.zeros([ROWS, 1], tl.float32)
    total = tl.zeros([ROWS, 1], tl.float32)
    for start in range(0, C, BLOCK):
        k = start + tl.arange(0, BLOCK)[None, :]
        x = _values(start_of_row + k, in_N & (k < C))
        number += tl.sum(tl.where((k < C) & (x >= x_y), 1.0, 0.0), axis=1, keep_dims=True)
        log_p = x - top - rest
        above_mean = log_p - tl.load(log_mean + k, mask=k < C)
        term = tl.exp(log_p) * above_mean  # not a number for a masked class, with a logit of minus infinity
        total += tl.sum(tl.where((k < C) & (term == term), term, 0.0), axis=1, keep_dims=True)
    tl.store(rank + row, number, mask=in_N)
    tl.store(divergence + row, total, mask=in_N)


@_jit
def _rows(ROWS: constexpr):
    """Give the program's rows, in 64 bits as N * C may need."""
    return tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]


@_jit
def _logits(start_of_row, k, y, bias, mask):
    return _values(start_of_row + k, mask) + tl.where(k == y, bias, 0.0)


@_jit
def _values(at, mask):
    return tl.load(at, mask=mask, other=-float("inf")).to(tl.float32)


@_jit
def _f(x, a, b, FORM: constexpr):
    """Give f and f' at the log-probability x."""
    if FORM == "linear":
        value = a * x
        slope = a
    elif FORM == "power":
        value = (-a / b) * _expm1(b * x)
        slope = -a * tl.exp(b * x)
    else:
        q = -_expm1(tl.minimum(x, -1.1920929e-07))  # as one_minus_p
        modulator = tl.exp(a * tl.log(q))
        value = -modulator * x
        if FORM == "focal":
            slope = modulator * (a * x * tl.exp(x) / q - 1)
        else:
            slope = -modulator
    return value, slope


@_jit
def _expm1(x):
    """Give ``exp(x) - 1`` for x <= 0; CUDA's own is out of reach of Triton's interpreter."""
    series = 1 / 5040 + x * (1 / 40320)  # of (exp(x) - 1) / x, up to x^7 / 8!
    series = 1 / 24 + x * (1 / 120 + x * (1 / 720 + x * series))
    series = 1 + x * (1 / 2 + x * (1 / 6 + x * series))
    return tl.where(x > -0.5, x * series, tl.exp(x) - 1)
