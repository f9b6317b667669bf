"""The CUDA kernels: what they compute, under Triton's interpreter or on a GPU, and that they compile for one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from noisyloss import CELoss, FocalLoss, GCELoss, MAELoss, create_loss
from noisyloss._log_probs import (
    LOG_P,
    NUM_CLASSES,
    SEEN,
    ClassFunction,
    _by_plain_ops,
    spread,
    target_and_sums,
)

triton = pytest.importorskip("triton")

from noisyloss import _fused, _log_probs  # noqa: E402

INTERPRETED = os.getenv("TRITON_INTERPRET") == "1"  # must be so when Triton is imported: hence the process of its own
DEVICE = "cpu" if INTERPRETED else "cuda"
runs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="runs within test_under_the_interpreter"
)
pytestmark = [  # NumPy's, of inf - inf, and in older Tritons of int(array)
    pytest.mark.filterwarnings(f"ignore::{category}:triton.runtime.interpreter")
    for category in ("RuntimeWarning", "DeprecationWarning")
]

FUNCTIONS = [
    [],
    [LOG_P],
    *([cls(**settings)] for cls in _fused._FORMS if cls is not type(LOG_P) for settings in ({}, *cls.examples)),
]
SHAPES = [(1, 2), (5, 16), (70, 10), (3, 1030), (2, 9001)]
each_function = pytest.mark.parametrize(
    "functions", FUNCTIONS, ids=lambda fs: getattr(fs[0], "_describe", lambda: "log p")() if fs else "none"
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    """Nothing: torch's compiler is not used here, and takes seconds to import."""


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 100


# Against plain ops


def logits(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, scale: float = 4.0) -> Tensor:
    return (scale * torch.randn(shape, generator=generator)).to(DEVICE, dtype).requires_grad_()


def indices(input: Tensor, generator: torch.Generator) -> Tensor:
    N, C = input.shape
    return torch.randint(C, (N, 1), generator=generator).to(input.device)


def fused(input: Tensor, index: Tensor, bias: float, functions: Sequence[ClassFunction]) -> tuple[Tensor, ...]:
    log_p_y, *outputs = _fused.target_and_sums(input, index, bias, False, None, *functions)
    sums = outputs[SEEN:]
    return log_p_y, *sums


def plain(input: Tensor, index: Tensor, bias: float, functions: Sequence[ClassFunction]) -> tuple[Tensor, ...]:
    _, log_p_y, sums = _by_plain_ops(input, index, bias, functions)
    return log_p_y, *sums


def check(
    input: Tensor,
    functions: Sequence[ClassFunction],
    generator: torch.Generator,
    bias: float = 0.0,
    index: Tensor | None = None,
    slack: float = 0.0,
) -> None:
    """Compare values and gradient with float64, and their errors with those of plain ops in float32."""
    index = indices(input, generator) if index is None else index
    upstream = [torch.randn(index.shape, generator=generator).to(input.device) for _ in range(1 + len(functions))]

    def values_and_gradient(op: object, dtype: torch.dtype) -> list[Tensor]:
        logits = input.detach().to(dtype) if op is plain else input
        logits.requires_grad_()
        values = op(logits, index, bias, functions)
        return [*values, *torch.autograd.grad(values, logits, [g.to(values[0].dtype) for g in upstream])]

    got = values_and_gradient(fused, input.dtype)
    assert [x.dtype for x in got] == [*[torch.float32] * len(upstream), input.dtype]
    expected = zip(values_and_gradient(plain, torch.float64), values_and_gradient(plain, torch.float32), strict=True)
    for x, (exact, single) in zip(got, expected, strict=True):
        assert exact.isfinite().all()
        budget = 2 * (single - exact).abs().max() + slack + 4 * torch.finfo(torch.float32).eps * exact.abs().max()
        if x.dtype != torch.float32:  # the last rounding, to nearest on a GPU, cuts off in the interpreter
            limits = torch.finfo(x.dtype)
            budget = budget + limits.eps * exact.abs().clamp(min=limits.smallest_normal)
        worst = ((x.double() - exact).abs() - budget).max()
        assert worst <= 0, (x, exact, single)


@runs_kernels
@each_function
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int], functions: list, generator: torch.Generator) -> None:
    check(logits(shape, torch.float32, generator), functions, generator)


@runs_kernels
@each_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced_precision(dtype: torch.dtype, functions: list, generator: torch.Generator) -> None:
    check(logits((3, 1030), dtype, generator), functions, generator)


@runs_kernels
def test_many_rows(generator: torch.Generator) -> None:
    check(logits((252, 507), torch.float32, generator), [FocalLoss()], generator)


@runs_kernels
@each_function
def test_bias_of_the_target(functions: list, generator: torch.Generator) -> None:
    for bias in (2.2, -1.5, 10.0):
        check(logits((7, 130), torch.float32, generator), functions, generator, bias)


@runs_kernels
@pytest.mark.parametrize("functions", [[CELoss()], [GCELoss()]], ids=["ce", "gce"])
@pytest.mark.parametrize(
    "layout",
    [lambda x: x[:, 3:4500], lambda x: x[1::2, :4096], lambda x: x.T[:300], lambda x: x[:1].expand(4, -1)],
    ids=["columns", "rows", "transposed", "expanded"],
)
def test_layouts(layout: Callable[[Tensor], Tensor], functions: list, generator: torch.Generator) -> None:
    input = layout(logits((6, 4601), torch.float32, generator).detach())
    check(input, functions, generator, index=indices(input, generator).repeat(1, 2)[:, 1:])


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_offsets_of_more_than_32_bits(dtype: torch.dtype, generator: torch.Generator) -> None:
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("too little memory")
    memory = torch.empty(2**31 + 32, dtype=dtype, device=DEVICE)  # of which but three rows are touched
    input = memory.as_strided((3, 32), (2**30, 1))
    input.copy_(logits(input.shape, dtype, generator).detach())
    check(input, [CELoss()], generator)


# What a warm-up asks for


@runs_kernels
@pytest.mark.parametrize("shape", [(1, 2), (300, 7), (35, 5000)], ids=str)
@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e-3), ("float32", 3.0), ("float32", 1e4), ("bfloat16", 3.0)])
def test_spread(shape: tuple[int, int], dtype: str, scale: float, generator: torch.Generator) -> None:
    input = logits(shape, getattr(torch, dtype), generator, scale).detach()
    index = indices(input, generator)
    for counted in (None, torch.rand(index.shape, generator=generator).to(DEVICE) < 0.6, index < 0):
        log_p_y, rank, *found, _ = _fused.target_and_sums(input, index, 0.0, True, counted, CELoss())
        assert torch.equal(rank, (input >= input.gather(1, index)).sum(1, keepdim=True).float())
        results = [[log_p_y, *found]]
        for dtype_of_plain in (torch.float64, torch.float32):
            log_p = input.to(dtype_of_plain).log_softmax(1)
            results.append((log_p.gather(1, index), *spread(log_p, counted)))
        # A divergence is a sum that cancels, whatever its size.
        for got, exact, single, least in zip(*results, (0, 1, 0), strict=True):
            assert got.dtype == torch.float32
            assert got.shape == exact.shape
            size = exact.abs().max().clip(min=least)
            budget = 2 * (single - exact).abs().max() + 16 * torch.finfo(torch.float32).eps * size
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=float(budget.nan_to_num()), equal_nan=True)
    assert results[0][2].isnan().all()  # of none


@runs_kernels
def test_ignored_rows_are_not_in_the_mean_whatever_they_hold(generator: torch.Generator) -> None:
    input = logits((40, 1030), torch.float32, generator).detach()
    counted = torch.arange(40, device=DEVICE)[:, None] % 4 > 0
    index = indices(input, generator)
    expected = _fused.target_and_sums(input[counted[:, 0]], index[counted[:, 0]], 0.0, True, None)
    input[0], input[4, 3] = torch.nan, torch.inf
    _, rank, divergence, log_mean = _fused.target_and_sums(input, index, 0.0, True, counted)
    torch.testing.assert_close(log_mean, expected[3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(divergence[counted], expected[2].flatten(), rtol=1e-4, atol=1e-6)
    assert torch.equal(rank[counted], expected[1].flatten())


@runs_kernels
def test_spread_beside_a_masked_class(generator: torch.Generator) -> None:
    input = logits((40, 1030), torch.float32, generator).detach()
    input[:, 7] = -torch.inf
    _, rank, *found = _fused.target_and_sums(input, torch.full_like(input[:, :1], 7, dtype=torch.long), 0.0, True, None)
    assert (rank == 1030).all()
    expected = spread(input.log_softmax(1), None)
    assert expected.divergence.isfinite().all()
    for got, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-6)


@runs_kernels
def test_gradient_beside_a_spread(generator: torch.Generator) -> None:
    input = logits((9, 1030), torch.float32, generator)
    index = indices(input, generator)
    log_p_y, *found, sums = _fused.target_and_sums(input, index, 0.0, True, None, GCELoss())
    values = fused(input, index, 0.0, [GCELoss()])
    assert not any(field.requires_grad for field in found)
    upstream = torch.randn(index.shape, generator=generator).to(DEVICE)
    gradients = [torch.autograd.grad((upstream * (2 * a + b)).sum(), input)[0] for a, b in ((log_p_y, sums), values)]
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


@runs_kernels
@pytest.mark.parametrize("id", ["nce+rce", "nfl"])
def test_a_loss_that_warms_up(id: str, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    batches = []
    for _ in range(2):
        input = logits((40, 300), torch.float32, generator)
        target = indices(input, generator)[:, 0]
        batches.append((input, target.where(target > 30, -100)))
    results = []
    for kernels in (False, True):
        if kernels:
            monkeypatch.setattr(_log_probs, "_blockwise", lambda *args: True)
            monkeypatch.setattr(_log_probs, "_node", lambda *args: _fused.target_and_sums)
        loss = create_loss(id, warmup=True, reduction="none")
        for input, target in batches:
            values = loss(input, target)
            results.append([values, *torch.autograd.grad(values.sum(), input), *loss.state_dict().values()])
    for plain, fused in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-6)


# Extreme logits


@runs_kernels
@each_function
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e4, 1e30])
def test_scales(scale: float, functions: list, generator: torch.Generator) -> None:
    for shape in [(2, 5000), (50, 3)]:
        check(logits(shape, torch.float32, generator, scale), functions, generator)


@runs_kernels
@each_function
@pytest.mark.parametrize("margin", [1.0, 10.0, 20.0, 1e4])
def test_confident_rows(margin: float, functions: list, generator: torch.Generator) -> None:
    input = logits((6, 100), torch.float32, generator, 1.0).detach()
    index = indices(input, generator)
    input[:3] += 1e4  # the common part of the logits must not matter
    confident = input.scatter_add(1, index, torch.full_like(input[:, :1], margin))
    rounding_of_p = 4 * torch.finfo(torch.float32).eps
    check(confident, functions, generator, index=index, slack=rounding_of_p)
    check(confident, functions, generator, slack=rounding_of_p)  # confident, and wrong


@runs_kernels
@each_function
def test_nan_stays_in_its_row(functions: list, generator: torch.Generator) -> None:
    input = logits((3, 4200), torch.float32, generator)
    with torch.no_grad():
        input[1, 7] = torch.nan
    values = fused(input, indices(input, generator), 0.0, functions)
    (gradient,) = torch.autograd.grad(sum(values).sum(), input)
    for x in (*values, gradient):
        assert x[1].isnan().all()
        assert x[[0, 2]].isfinite().all()


@runs_kernels
@pytest.mark.parametrize("functions", [[], [CELoss()], [GCELoss()]], ids=["none", "ce", "gce"])
@pytest.mark.parametrize("row", ["some", "first block", "all", "plus"])
def test_infinite_logits_are_as_in_plain_ops(row: str, functions: list, generator: torch.Generator) -> None:
    input = logits((2, 4200), torch.float32, generator).detach()
    where = {"some": slice(0, None, 3), "first block": slice(4100), "all": slice(None), "plus": slice(5, 6)}[row]
    input[1, where] = torch.inf if row == "plus" else -torch.inf
    index = torch.tensor([[3], [3]], device=DEVICE)
    results = []
    for op in (fused, plain):
        leaf = input.clone().requires_grad_()
        values = op(leaf, index, 0.0, functions)
        results.append([*values, *torch.autograd.grad(sum(values).sum(), leaf)])
    torch.testing.assert_close(*results, equal_nan=True, rtol=1e-3, atol=1e-3)


@runs_kernels
def test_a_class_that_there_is_not_gives_nan(generator: torch.Generator) -> None:
    input = logits((3, 5), torch.float32, generator)
    (log_p_y,) = fused(input, torch.tensor([[5], [1], [-1]], device=DEVICE), 0.0, [])
    assert log_p_y.isnan().flatten().tolist() == [True, False, True]


# Autograd


@runs_kernels
@each_function
def test_an_output_without_use_adds_nothing(functions: list, generator: torch.Generator) -> None:
    input = logits((3, 40), torch.float32, generator)
    index = indices(input, generator)
    for position in range(1 + len(functions)):
        gradients = [
            torch.autograd.grad(op(input, index, 0.0, functions)[position].sum(), input)[0] for op in (fused, plain)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@runs_kernels
@each_function
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_second_derivatives(dtype: torch.dtype, tolerance: float, functions: list, generator: torch.Generator) -> None:
    input = logits((3, 40), dtype, generator)
    index, bias = indices(input, generator), -1.5
    direction = torch.randn(input.shape, generator=generator).to(input)
    results = []
    for op in (fused, plain):
        values = op(input if op is fused else input.float(), index, bias, functions)
        (gradient,) = torch.autograd.grad(sum(v.square() for v in values).sum(), input, create_graph=True)
        results.append([gradient, *torch.autograd.grad((gradient * direction).sum(), input)])
    for x, y in zip(*results, strict=True):
        assert (x - y).abs().max() <= tolerance * y.abs().max()


@runs_kernels
def test_without_grad(generator: torch.Generator) -> None:
    input = logits((3, 40), torch.float32, generator)
    index = indices(input, generator)
    with torch.no_grad():
        values = fused(input, index, 0.0, [CELoss()])
    assert not any(value.requires_grad for value in values)
    torch.testing.assert_close(values, fused(input, index, 0.0, [CELoss()]))


@runs_kernels
def test_whatever_the_default_dtype(generator: torch.Generator) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        check(logits((3, 40), torch.float32, generator), [FocalLoss()], generator)
    finally:
        torch.set_default_dtype(torch.float32)


@runs_kernels
def test_the_number_of_classes(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """It needs no kernel, so a loss that asks for it beside another sum has one all the same."""
    asked = []
    monkeypatch.setattr(_log_probs, "_blockwise", lambda *args: True)
    monkeypatch.setattr(_log_probs, "_node", lambda *args: asked.append(args) or _fused.target_and_sums)
    input, gce = logits((5, 16), torch.float32, generator), GCELoss()
    index = indices(input, generator)
    log_p_y, (before, total, after) = target_and_sums(input, index, 0.0, [NUM_CLASSES, gce, NUM_CLASSES])
    assert [functions for *_, functions in asked] == [[gce]]
    assert (before == 16).all()
    assert torch.equal(before, after)
    values = fused(input, index, 0.0, [gce])
    assert torch.equal(torch.stack([log_p_y, total]), torch.stack(values))
    gradients = [torch.autograd.grad(sum(outputs).sum(), input)[0] for outputs in ((log_p_y, before, total), values)]
    assert torch.equal(*gradients)


# What is taken


@runs_kernels
def test_fusable() -> None:
    class Other(GCELoss):
        pass

    input = torch.zeros(3, 4, device=DEVICE)
    index = torch.zeros(3, 1, dtype=torch.long, device=DEVICE)
    assert all(_fused.fusable(input.to(dtype), index, []) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert all(_fused.fusable(input, index, functions) for functions in FUNCTIONS)
    assert not _fused.fusable(input.double(), index, [])
    assert not _fused.fusable(input[None], index, [])
    assert not _fused.fusable(input[:0], index[:0], [])
    assert not _fused.fusable(input, index.to("meta"), [])
    assert not _fused.fusable(torch.nn.Parameter(input), index, [])
    assert not _fused.fusable(input, index, [Other()])
    assert not _fused.fusable(input, index, [CELoss(), MAELoss()])


@runs_kernels
def test_kernels_that_do_not_build_are_told_of_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(_fused, "_launch", fails)
    _fused._runs.cache_clear()
    input = torch.zeros(3, 4, device=DEVICE)
    with pytest.warns(UserWarning, match="Failed to find C compiler"):
        assert not _fused.fusable(input, input[:, :1].long(), [])
    assert not _fused.fusable(input, input[:, :1].long(), [])  # without a second warning
    _fused._runs.cache_clear()


def test_cpu_tensors_are_left_to_plain_ops() -> None:
    if not INTERPRETED:
        assert not _fused.fusable(torch.zeros(3, 4), torch.zeros(3, 1, dtype=torch.long), [])


@pytest.mark.skipif(INTERPRETED, reason="need not run twice")
def test_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; from noisyloss import _fused; print(_fused.triton)"
    path = os.pathsep.join([str(Path(_fused.__file__).parent.parent), os.getenv("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


# Compilation


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize(("capability", "dtype"), [(80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float32)])
def test_kernels_compile(
    capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, generator: torch.Generator
) -> None:
    """The launches of both ways, but each ends with machine code for a GPU that need not be there."""
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    driver = SimpleNamespace(  # the "device" keys a cache of kernels, which a real one shall not find
        get_current_target=lambda: target, get_current_device=lambda: target, get_current_stream=lambda device: 0
    )
    monkeypatch.setattr("triton.runtime.jit.driver", SimpleNamespace(active=driver))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = []

    def compiling(kernel: object) -> object:
        def launcher(grid: tuple[int, int]) -> object:
            return lambda *args, **kwargs: compiled.append(kernel.warmup(*args, grid=grid, **kwargs))

        return type("Compiling", (), {"__getitem__": lambda self, grid: launcher(grid)})()

    for name in ("_forward", "_backward", "_column_sums", "_seen"):
        monkeypatch.setattr(_fused, name, compiling(getattr(_fused, name)))
    functions = [[], [CELoss()], [GCELoss()], [FocalLoss()], [FocalLoss(detach_modulator=True)]]
    for fs in functions:
        input = torch.zeros(6, 1000, dtype=dtype, requires_grad=True)
        sum(fused(input, torch.zeros(6, 1, dtype=torch.long), 0.0, fs)).sum().backward()
    assert len(compiled) == 2 * len(functions)
    input = torch.zeros(6, 1000, dtype=dtype)
    _fused.target_and_sums(input, torch.zeros(6, 1, dtype=torch.long), 0.0, True, None)
    assert len(compiled) == 2 * len(functions) + 3
    for kernel in compiled:
        ptx = kernel.asm["ptx"]
        assert f".target sm_{capability}" in ptx
        assert re.search(r"ld\.global\S*\.v4", ptx)  # 16 bytes at once
        assert ".f64" not in ptx
        assert ".local" not in ptx  # no registers spilt
        assert kernel.asm["cubin"]
    for shape in ((1, 2), (5, 10), (3, 50257)):
        input = torch.zeros(shape, dtype=dtype, requires_grad=True)
        sum(fused(input, torch.zeros(shape[0], 1, dtype=torch.long), 2.2, [GCELoss()])).sum().backward()
    assert len(compiled) == 2 * (len(functions) + 3) + 3
