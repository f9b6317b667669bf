"""What a loss costs: every loss against torch's cross entropy, and against one-hot code as papers publish it.

    python benchmarks/speed.py
    python benchmarks/speed.py --losses nce+rce --shapes 1024x1000 4096x128256:bfloat16 --modes eager

A measurement is one loss at one shape, eager or compiled. In each of its rounds cross entropy, the loss and its one-hot
form run once, in shuffled order: a forward, then its backward. Percentiles (20, 50, 80) are over the rounds. The ratio
is the median of the rounds' own ratios to cross entropy, so it holds on a machine whose speed drifts. Left out is what
comes before: compiling (torch.compile(loss, fullgraph=True), for one shape alone), warm-up, freeing the old gradient.
Logits are those of a network that knows most labels; `LOSS@late` is a loss whose warm-up is over.
On CUDA each call starts on an idle device with a cold L2 cache and is timed by events: launches count as they do there.

`saved_bytes` is what autograd keeps for the backward, input and target left out; `peak_bytes` (CUDA) is the most that
forward and backward allocate, the gradient included; `copy_share` (CUDA) is the share reached of the bandwidth that a
plain copy has, if N·C elements are read forwards, and read and written backwards: 3·N·C in all.

Every measurement ends in rows of OUT/results.jsonl; what is there with the same commit is skipped. The default
grid takes half an hour or so on two quiet cores of a CPU, most of it compiling or at the largest shape.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import platform
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from harness import (
    DROP_IN,
    Row,
    append_row,
    at_least,
    check,
    device_name,
    git_commit,
    parse_loss,
    read_rows,
    shell_command,
)
from tables import markdown_table
from torch import Tensor

from noisyloss import WeightedSum, create_loss, list_losses

SHAPES = {"cpu": ["128x10", "128x100", "1024x1000", "2048x32000"]}
SHAPES["cuda"] = [*SHAPES["cpu"], "4096x128256:bfloat16"]
DTYPES = ("float32", "bfloat16")
MODES = ("eager", "compiled")
PASSES = {"forward": 1, "backward": 2, "both": 3}  # the measures, and how often each must go through N·C elements
ROUNDS = 5  # at least
ONE_HOT_LIMIT = 1 << 24  # elements; on a CPU the one-hot forms of more take seconds a call
TORCH, OURS, ONE_HOT = "torch", "noisyloss", "one-hot"  # the implementations
LATE = "@late"  # behind a loss whose warm-up is over

IDENTITY = ("loss", "shape", "dtype", "device", "threads", "mode", "torch", "commit")  # of a measurement
RESULTS = ("p20", "p50", "p80", "ratio_p20", "ratio", "ratio_p80", "copy_share", "saved_bytes", "peak_bytes", "error")

Call = Callable[[Tensor, Tensor], Tensor]
Cells = dict[tuple[str, str, str, str], Row]  # by loss, implementation, shape and mode


# The losses as published code computes them: a dense target, a softmax for each term, a clamp before a power or a log


def one_hot(z: Tensor, y: Tensor) -> Tensor:
    """Return the target as N×C floats."""
    return F.one_hot(y, z.shape[1]).to(z.dtype)


def softmax(z: Tensor) -> Tensor:
    """Return probabilities, clamped: at the bound they have no gradient."""
    return F.softmax(z, 1).clamp(1e-7, 1.0)


def focal(log_p: Tensor, gamma: float, detach_modulator: bool) -> Tensor:
    """Return the focal loss of every entry."""
    modulator = (1 - log_p.exp()) ** gamma
    return -(modulator.detach() if detach_modulator else modulator) * log_p


def normalized(values: Tensor, y: Tensor) -> Tensor:
    """Return the target's share of the sum over the classes."""
    return (one_hot(values, y) * values).sum(1) / values.sum(1)


FORMS: dict[str, Callable[..., Tensor]] = {
    "ce": lambda z, y: -(one_hot(z, y) * F.log_softmax(z, 1)).sum(1),
    "focal": lambda z, y, **settings: focal((one_hot(z, y) * F.log_softmax(z, 1)).sum(1), **settings),
    "mae": lambda z, y: 1 - (one_hot(z, y) * softmax(z)).sum(1),
    "rce": lambda z, y, A: -(softmax(z) * one_hot(z, y).clamp(math.exp(A), 1.0).log()).sum(1),
    "gce": lambda z, y, q: (1 - (one_hot(z, y) * softmax(z)).sum(1) ** q) / q,
    "nce": lambda z, y: FORMS["ce"](z, y) / -F.log_softmax(z, 1).sum(1),
    "nfl": lambda z, y, **settings: FORMS["focal"](z, y, **settings) / focal(F.log_softmax(z, 1), **settings).sum(1),
    "nmae": lambda z, y: FORMS["mae"](z, y) / (z.shape[1] - 1),
    "nrce": lambda z, y, A: FORMS["rce"](z, y, A) / (-A * (z.shape[1] - 1)),
    "ngce": lambda z, y, q: FORMS["gce"](z, y, q) * q / (z.shape[1] - (softmax(z) ** q).sum(1)),
    "agce": lambda z, y, a, q: ((a + 1) ** q - (a + (one_hot(z, y) * F.softmax(z, 1)).sum(1)) ** q) / q,
    "aul": lambda z, y, a, q: ((a - (one_hot(z, y) * F.softmax(z, 1)).sum(1)) ** q - (a - 1) ** q) / q,
    "ael": lambda z, y, a: torch.exp(-(one_hot(z, y) * F.softmax(z, 1)).sum(1) / a),
    "anorm": lambda z, y, a, p: ((a * one_hot(z, y) - softmax(z)).abs() ** p).sum(1).sub((a - 1) ** p) / p,
    "amse": lambda z, y, a: ((a * one_hot(z, y) - F.softmax(z, 1)) ** 2).mean(1),
    "mse": lambda z, y: ((one_hot(z, y) - F.softmax(z, 1)) ** 2).mean(1),
    "taylor-ce": lambda z, y, t: sum(FORMS["mae"](z, y) ** i / i for i in range(1, t + 1)),
    "nl": lambda z, y, p_min: (
        -((1 - one_hot(z, y)) * (1 - F.softmax(z, 1)).clamp(p_min).log()).sum(1) / (z.shape[1] - 1)
    ),
    "nnce": lambda z, y, p_min: 1 - normalized(F.softmax(z, 1).clamp(p_min).log() - math.log(p_min), y),
    "unhinged": lambda z, y: z.mean(1) - (one_hot(z, y) * z).sum(1),
    "nls": lambda z, y, r: -(((1 - r) * one_hot(z, y) + r / z.shape[1]) * F.log_softmax(z, 1)).sum(1),
    "bootstrap": lambda z, y, t: -(((1 - t) * one_hot(z, y) + t * F.softmax(z, 1)) * F.log_softmax(z, 1)).sum(1),
}


def one_hot_form(loss: torch.nn.Module) -> Call | None:
    """Return a loss in its one-hot form; None if it has none here."""
    if loss.label_smoothing or loss.logit_bias or loss.warmup:
        return None
    if not isinstance(loss, WeightedSum):
        form, settings = FORMS.get(loss.id), loss.hyperparameters
        return None if form is None else lambda z, y: form(z, y, **settings).mean()
    first, *others = zip(loss.weights, map(one_hot_form, loss.losses), strict=True)
    if any(member is None for _, member in (first, *others)):
        return None
    return lambda z, y: sum((w * member(z, y) for w, member in others), first[0] * first[1](z, y))


# Measuring


class Stopwatch:
    """Times a forward and its backward, in microseconds: (forward, backward, both)."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
            self.flush = torch.empty(1 << 28, dtype=torch.int8, device=device)  # several times any L2 cache
        else:
            # glibc keeps freed memory in blocks as large as the largest freed so far, up to 32 MiB. Without this one,
            # what was measured before would decide whether tensors of some megabytes cost page faults.
            torch.empty(31 << 20, dtype=torch.int8)

    def __call__(self, call: Call, x: Tensor, y: Tensor) -> tuple[float, ...]:
        """Call once, without an old gradient to add to."""
        x.grad = None
        if not self.cuda:
            start = time.perf_counter_ns()
            loss = call(x, y)
            middle = time.perf_counter_ns()
            loss.backward()
            end = time.perf_counter_ns()
            return (middle - start) / 1e3, (end - middle) / 1e3, (end - start) / 1e3
        start, middle, end = self.events
        self.flush.zero_()
        torch.cuda.synchronize()
        start.record()
        loss = call(x, y)
        middle.record()
        loss.backward()
        end.record()
        torch.cuda.synchronize()
        return tuple(1e3 * a.elapsed_time(b) for a, b in ((start, middle), (middle, end), (start, end)))


def copy_bandwidth(device: torch.device) -> float | None:
    """Return the bytes per second, read and written, of a plain copy of a gigabyte on a CUDA device."""
    if device.type != "cuda":
        return None
    a, b = torch.zeros(2, 1 << 30, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    seconds = []
    for _ in range(25):
        start.record()
        b.copy_(a)
        end.record()
        torch.cuda.synchronize()
        seconds.append(1e-3 * start.elapsed_time(end))
    return 2 * a.nbytes / float(np.median(seconds[5:]))


def saved_bytes(call: Call, x: Tensor, y: Tensor) -> int:
    """Return the size of the storages kept for the backward, those of input and target left out."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = call(x, y)
    loss.backward()  # until here they are alive, and their addresses differ
    return sum(sizes.values()) - sum(sizes.get(tensor.untyped_storage().data_ptr(), 0) for tensor in (x, y))


def peak_bytes(call: Call, x: Tensor, y: Tensor) -> int | None:
    """Return the most that forward and backward allocate on a CUDA device, the gradient included."""
    if not x.is_cuda:
        return None
    x.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(x, y).backward()
    return torch.cuda.max_memory_allocated() - before


def interleave(calls: dict[str, Call], x: Tensor, y: Tensor, seconds: float, watch: Stopwatch) -> dict[str, np.ndarray]:
    """Return the times of every call, of shape (rounds, 3)."""
    order, shuffle = list(calls), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for budget, rounds in ((seconds / 10, 1), (seconds, ROUNDS)):  # the first is the warm-up
            times: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
            end = time.perf_counter() + budget
            while calls and (len(times[order[0]]) < rounds or time.perf_counter() < end):
                shuffle(order)
                for name in order:
                    times[name].append(watch(calls[name], x, y))
    finally:
        gc.enable()
        x.grad = None
    return {name: np.array(rounds) for name, rounds in times.items()}


def measure(
    about: Row, calls: dict[str, Call], x: Tensor, y: Tensor, seconds: float, watch: Stopwatch, copy: float | None
) -> list[Row]:
    """Measure one loss; return a row for each implementation and measure, with the error if there was one."""
    torch.compiler.reset()  # all losses share code: without it they soon reach the limit of recompiling
    ready: dict[str, Call] = {}
    found: dict[str, Row] = {}
    for name, call in calls.items():
        try:
            first = torch.compile(call, fullgraph=True) if about["mode"] == "compiled" else call
            found[name] = {"saved_bytes": saved_bytes(first, x, y), "peak_bytes": peak_bytes(first, x, y)}
            ready[name] = first
        except Exception as error:  # whatever a compiler or a full memory makes torch raise; the others go on
            found[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    if TORCH not in ready:  # nothing to compare with
        found, ready = dict.fromkeys(calls, found[TORCH]), {}
    times = interleave(ready, x, y, seconds, watch)

    rows = []
    for name, (column, (part, passes)) in itertools.product(calls, enumerate(PASSES.items())):
        row = about | {"implementation": name, "measure": part, "rounds": len(times.get(name, ()))}
        row |= dict.fromkeys(RESULTS) | found[name]
        if name in times:
            mine, reference = times[name][:, column], times[TORCH][:, column]
            numbers = [*np.percentile(mine, (20, 50, 80)), *np.percentile(mine / reference, (20, 50, 80))]
            row |= {field: float(f"{number:.4g}") for field, number in zip(RESULTS[:6], numbers, strict=True)}
            row["copy_share"] = copy and round(passes * x.nbytes / (row["p50"] * 1e-6 * copy), 4)
        rows.append(row)
    return [row for row in rows if row["implementation"] != TORCH or row["loss"] == "ce"]  # one a shape will do


# The table and the plot


def report(rows: Iterable[Row], out: Path) -> None:
    """Print a table and save a plot for each device and dtype; of repeated measurements the last one counts."""
    groups: dict[tuple[str, str], Cells] = {}
    for row in rows:
        if row["measure"] == "both":
            key = (row["loss"], row["implementation"], row["shape"], row["mode"])
            groups.setdefault((row["device"], row["dtype"]), {})[key] = row
    if not groups:
        print(f"no rows in {out}")
    for (device, dtype), cells in groups.items():
        torches, commits = (", ".join(sorted({str(row[field]) for row in cells.values()})) for field in IDENTITY[-2:])
        title = f"{device}, {dtype}, torch {torches}, commit {commits}"
        losses = sorted({loss for loss, *_ in cells}, key=lambda loss: ("+" in loss, loss))
        shapes = sorted({shape for _, _, shape, _ in cells}, key=elements)
        modes = [mode for mode in MODES if any(key[-1] == mode for key in cells)]
        print(f"\n{title}\nForward + backward over torch's cross entropy, {' / '.join(modes)}\n")
        print(table(cells, losses, shapes, modes))
        for key, row in cells.items():
            if row["error"]:
                print(f"failed: {', '.join(key)}: {row['error']}")
        path = out / (re.sub(r"\W+", "-", f"speed-{device}-{dtype}".lower()) + ".png")
        plot(cells, losses, shapes, modes, title, path)
        print(f"\n{path}")


def shown(loss: str) -> str:
    """Return the spec, or the class for the drop-in."""
    return loss.replace(DROP_IN, "APLLoss()").replace(LATE, ", later")


def elements(shape: str) -> int:
    """Return N·C."""
    return math.prod(map(int, shape.split("x")))


def table(cells: Cells, losses: Sequence[str], shapes: Sequence[str], modes: Sequence[str]) -> str:
    """Return the ratios loss by loss; memory and bandwidth are those at the largest shape."""

    def cell(loss: str, implementation: str, shape: str, show: Callable[[Row], str]) -> str:
        found = (cells.get((loss, implementation, shape, mode)) for mode in modes)
        return " / ".join(show(row) if row and row["p50"] else "–" for row in found)

    def memory(row: Row) -> str:
        of_input = elements(row["shape"]) * getattr(torch, row["dtype"]).itemsize
        return f"{(row['saved_bytes'] if row['peak_bytes'] is None else row['peak_bytes']) / of_input:.2f}"

    def bandwidth(row: Row) -> str:
        return "–" if row["copy_share"] is None else f"{row['copy_share']:.0%}"

    def line(label: str, loss: str, implementations: Sequence[str], show: Callable[[Row], str]) -> list[str]:
        times = [cell(loss, i, shape, show) for shape in shapes for i in implementations]
        return [label, *times, *(cell(loss, implementations[0], shapes[-1], show) for show in (memory, bandwidth))]

    kept = "saved" if all(row["peak_bytes"] is None for row in cells.values()) else "peak"
    heads = (head for shape in shapes for head in (shape.replace("x", "×"), ONE_HOT))
    lines = [["loss", *heads, f"{kept} / input", "of copy"]]
    lines.append(line("torch, µs", "ce", (TORCH, ""), lambda row: f"{row['p50']:.0f}"))
    lines += [line(shown(loss), loss, (OURS, ONE_HOT), lambda row: f"{row['ratio']:.2f}") for loss in losses]
    columns = [column for column in zip(*lines, strict=True) if "".join(column[1:]).strip("–/ ")]
    return markdown_table(list(zip(*columns, strict=True)))


def plot(
    cells: Cells, losses: Sequence[str], shapes: Sequence[str], modes: Sequence[str], title: str, path: Path
) -> None:
    """Save the ratios, a panel a shape: medians, with bars from the 20th to the 80th percentile."""
    from matplotlib.figure import Figure  # slow to import, and needed at the very end only

    figure = Figure(figsize=(2 + 2.6 * len(shapes), 1.8 + 0.27 * len(losses)), layout="constrained")
    figure.suptitle(f"Forward + backward over torch's cross entropy\n{title}", fontsize=9)
    panels = figure.subplots(1, len(shapes), sharex=True, sharey=True, squeeze=False)[0]
    handles = {}
    for axes, shape in zip(panels, shapes, strict=True):
        axes.axvline(1, color="0.3", linewidth=1)
        for implementation, mode in itertools.product((ONE_HOT, OURS), modes):
            found = [cells.get((loss, implementation, shape, mode)) for loss in losses]
            there = [(place, row) for place, row in enumerate(found) if row and row["p50"]]
            low, middle, high = np.array([[row[f] for f in RESULTS[3:6]] for _, row in there]).reshape(-1, 3).T
            places = [place + (0.15 if mode == "compiled" else -0.15) for place, _ in there]
            colour = "C0" if implementation == OURS else "0.65"
            dots = axes.errorbar(middle, places, xerr=(middle - low, high - middle), fmt="o", color=colour).lines[0]
            dots.set(markersize=4.5, markerfacecolor="white" if mode == "compiled" else colour)
            handles[f"{implementation}, {mode}"] = dots
        axes.set(
            title=shape.replace("x", " × "), xscale="log", yticks=range(len(losses)), yticklabels=map(shown, losses)
        )
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    low, high = panels[0].get_xlim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100) if low <= tick <= high]
    panels[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0].set_xticks([], minor=True)
    panels[0].invert_yaxis()
    columns = 4 if len(shapes) > 2 else 2
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, dpi=150)


# The command line


def parse_spec(text: str) -> torch.nn.Module:
    """Return the loss of `gce:q=0.5`; behind `nce:warmup=True@late` its warm-up lies."""
    spec, at, late = text.partition("@")
    name, given = parse_loss(spec)
    loss = create_loss(name, **given)
    if at and not (loss.warmup and at + late == LATE):
        raise ValueError(f"expected {LATE} behind a loss with warmup=True only")
    if at:  # wrong labels were known, and now they are not
        loss.load_state_dict(loss.state_dict() | dict.fromkeys(("_warmup.highest", "_warmup.faded"), torch.ones(())))
    return loss


def parse_shape(text: str) -> tuple[int, int, str | None]:
    """Split `4096x128256:bfloat16` into N, C and the dtype, None if it has none of its own."""
    size, colon, dtype = text.partition(":")
    count, _, classes = size.partition("x")
    if not (count.isdecimal() and classes.isdecimal() and int(count) > 0 and int(classes) > 1):
        raise ValueError("expected NxC, such as 1024x1000, with N >= 1 and C >= 2")
    if colon and dtype not in DTYPES:
        raise ValueError(f"expected NxC:DTYPE with {', '.join(DTYPES)}")
    return int(count), int(classes), dtype or None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is not there yet, then print the table and save the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("out/speed"), help="of rows and plots (default: %(default)s)")
    add("--losses", nargs="+", metavar="ID", default=[*list_losses(), DROP_IN, DROP_IN + LATE], help="default: all")
    add("--shapes", nargs="+", metavar="NxC[:DTYPE]", help=f"default: {' '.join(SHAPES['cuda'])} (CUDA)")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="where a shape has none (default: float32)")
    add("--modes", nargs="+", choices=MODES, default=MODES, help="default: both")
    add("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    add("--threads", metavar="N", type=at_least(1))
    add("--seconds", metavar="X", type=at_least(0, float), default=0.5, help="each measurement; five rounds at least")
    add("--no-one-hot", action="store_true", help="without these; on a CPU large shapes are always without")
    add("--again", action="store_true", help="measure also what is there")
    add("--table", action="store_true", help="no measuring: table and plot of the rows in --out")
    args = parser.parse_args(argv)
    results = args.out / "results.jsonl"
    if args.table:
        return report(read_rows(results), args.out)

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: there is no CUDA device here")
    shapes = args.shapes or SHAPES[device.type]
    check(parser, "--losses", args.losses, parse_spec)
    check(parser, "--shapes", shapes, parse_shape)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    shared = {"device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    shared |= {"python": platform.python_version(), "commit": git_commit()}
    done = {(*(row[name] for name in IDENTITY), row["implementation"]) for row in read_rows(results)}
    watch, copy = Stopwatch(device), copy_bandwidth(device)

    sizes = [(*size, dtype) for *size, own in map(parse_shape, shapes) for dtype in ([own] if own else args.dtype)]
    for count, classes, dtype in sizes:
        draw = torch.Generator(device).manual_seed(0)
        y = torch.randint(classes, (count, 1), device=device, generator=draw)
        x = torch.randn(count, classes, dtype=getattr(torch, dtype), device=device, generator=draw)
        told = torch.full_like(y, 2 + math.log(classes), dtype=x.dtype)  # most labels, as of a trained network
        x, y = x.scatter_add(1, y, told).requires_grad_(), y.squeeze(1)
        small = x.is_cuda or x.numel() <= ONE_HOT_LIMIT
        if not (small or args.no_one_hot):
            print(f"{count}x{classes}: no one-hot forms, they would take seconds a call", flush=True)
        for mode, spec in itertools.product(args.modes, args.losses):
            about = {"loss": spec, "shape": f"{count}x{classes}", "dtype": dtype, "mode": mode} | shared
            loss = parse_spec(spec)
            calls = {TORCH: F.cross_entropy, OURS: loss.to(device), ONE_HOT: one_hot_form(loss)}
            if not small or args.no_one_hot or not calls[ONE_HOT]:
                del calls[ONE_HOT]
            key = tuple(about[field] for field in IDENTITY)
            if not args.again and all((*key, name) in done for name in calls if name != TORCH):
                continue
            options = {"out": args.out, "losses": spec, "shapes": about["shape"], "dtype": dtype, "modes": mode}
            options |= {"device": device.type, "threads": args.threads, "seconds": args.seconds}
            about["command"] = shell_command("speed.py", **options)
            about["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
            rows = measure(about, calls, x, y, args.seconds, watch, copy)
            for row in rows:
                append_row(results, json.dumps(row))
            told = [f"{row['implementation']} {row['ratio'] or 'failed'}" for row in rows if row["measure"] == "both"]
            print(f"{about['shape']} {dtype} {mode} {spec}: {', '.join(told)}, {rows[0]['rounds']} rounds", flush=True)
    return report(read_rows(results), args.out)


if __name__ == "__main__":
    main()
