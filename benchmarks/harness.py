"""What the benchmarks share: specs, noisy labels, the row file, the training loop with its checkpoints.

A *run* is one network trained with one loss on one set of noisy labels; the fields in `IDENTITY` say which. Every
finished epoch is one JSON row in OUT/results.jsonl. A run killed at any moment goes on where it stopped: its checkpoint
is replaced *before* the row is appended and holds all rows so far, so a row is never lost and never repeated, and all
randomness of an epoch comes from (seed, epoch), so on a CPU the curve is that of an undisturbed run bit for bit.
Several processes may work on one OUT: each run is locked while it is trained, and the others take the next one.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import noisyloss
from noisyloss import create_loss, l1_penalty
from noisyloss.noise import asymmetric_matrix, corrupt, corrupt_by_instance, pairflip_matrix, symmetric_matrix

try:
    import fcntl
except ImportError:  # Windows has no flock: there, one process for each OUT
    fcntl = None  # type: ignore[assignment]

IDENTITY = ("dataset", "model", "loss", "hyperparameters", "noise", "seed", "epochs", "recipe")
NOISE_KINDS = ("clean", "symmetric", "asymmetric", "sequential", "pairflip", "instance", "human")
HUMAN = ("aggre", "random1", "random2", "random3", "worst")
DROP_IN = "nce+rce:alpha=0.1,beta=0.2,warmup=True"  # APLLoss() as a spec
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A data set on its device. The inputs are functions of an index tensor, as how to make a batch differs."""

    name: str
    num_classes: int
    mapping: Mapping[int, int]  # of asymmetric noise
    train_targets: Tensor  # clean
    test_targets: Tensor
    train_inputs: Callable[[Tensor], Tensor]  # without augmentation
    test_inputs: Callable[[Tensor], Tensor]
    epoch_inputs: Callable[[Sequence[Tensor], torch.Generator], Iterable[Tensor]]  # batches of one epoch, augmented
    features: Tensor | None = None  # of the training inputs, for instance-dependent noise; on a CPU, exact
    human: Mapping[str, Tensor] = field(default_factory=dict)  # training labels that people gave


@dataclass(frozen=True)
class Setup:
    """What a script trains with."""

    task: Task
    models: Mapping[str, Callable[[], nn.Module]]
    out: Path
    device: torch.device
    memorised_every: int = 1  # epochs; the last one is always measured
    bar: bool = True  # on a terminal

    @property
    def results(self) -> Path:
        """The one file of rows."""
        return self.out / "results.jsonl"


# Specs on the command line


def parse_loss(spec: str) -> tuple[str, dict[str, Any]]:
    """Split `nce+rce:alpha=10,beta=0.1` into the id and what is given; an error if that is no loss."""
    name, colon, settings = spec.partition(":")
    given: dict[str, Any] = {}
    for setting in settings.split(",") if colon else ():
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not (key and equals and text):
            raise ValueError(f"expected ID or ID:name=value,name=value; got {spec!r}")
        if key in given:
            raise ValueError(f"{key} is given twice in {spec!r}")
        if key in ("weight", "reduction", "ignore_index"):
            raise ValueError(f"{key} cannot be set here, in {spec!r}")
        try:
            given[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            given[key] = text  # a word, such as an id
    create_loss(name, **given)
    return name, given


def hyperparameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that distinguishes a loss from others of its id, resolved; options count unless they are off."""
    resolved = create_loss(name, **given).hyperparameters
    return resolved | {key: value for key, value in given.items() if key not in resolved and value}


def parse_noise(spec: str, human: Iterable[str] = ()) -> tuple[str, float | str]:
    """Split `symmetric:0.4` into the kind and the rate, `human:worst` into the kind and the name."""
    kind, _, text = spec.partition(":")
    if kind == "human" and text in human:
        return kind, text
    try:
        rate = float(text or (0 if spec == "clean" else math.nan))
    except ValueError:
        rate = math.nan
    if kind not in NOISE_KINDS[:-1] or (kind == "clean") != (spec == "clean") or not 0 <= rate <= 1:
        kinds = ", ".join(["clean", *(f"{kind}:RATE" for kind in NOISE_KINDS[1:-1]), *(f"human:{n}" for n in human)])
        raise ValueError(f"expected {kinds}, with a rate in [0, 1]; got {spec!r}")
    return kind, rate


def check(parser: argparse.ArgumentParser, option: str, specs: Iterable[str], parse: Callable[[str], Any]) -> None:
    """Stop with a message, before anything is trained, where a spec of this option cannot be read."""
    for spec in specs:
        try:
            parse(spec)
        except (TypeError, ValueError) as error:
            parser.error(f"argument {option}: {spec}: {error}")


def at_least(low: float, number: type = int) -> Callable[[str], Any]:
    """Return an argparse type: a finite number of at least `low`."""

    def parse(text: str) -> Any:
        try:
            value = number(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"expected {number.__name__} >= {low}; got {text!r}")
        return value

    return parse


def shell_options(**options: Any) -> str:
    """Return the part of a command line that gives these options; those that are None are left out."""
    words = []
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def shell_command(script: str, **options: Any) -> str:
    """Return the command line that gives a script these options."""
    return f"python benchmarks/{script} {shell_options(**options)}"


def in_brackets(settings: Mapping[str, Any]) -> str:
    """Return settings as they follow a name."""
    return f" ({', '.join(f'{key}={value}' for key, value in settings.items())})" if settings else ""


def noisy_labels(task: Task, noise: str, seed: int) -> Tensor:
    """Return the training labels that this seed gives, whatever the loss and the model; human ones are as they are."""
    kind, rate = parse_noise(noise, task.human)
    if isinstance(rate, str):
        return task.human[rate]
    clean, classes, generator = task.train_targets, task.num_classes, torch.Generator().manual_seed(seed)
    if kind == "instance":
        return corrupt_by_instance(clean, task.features, rate, num_classes=classes, generator=generator)
    if kind in ("asymmetric", "sequential"):
        matrix = asymmetric_matrix(classes, rate, task.mapping, sequential=kind == "sequential")
    else:
        matrix = (pairflip_matrix if kind == "pairflip" else symmetric_matrix)(classes, rate)
    return corrupt(clean, matrix, generator=generator)


def make_runs(
    losses: Sequence[str],
    noises: Sequence[str],
    seeds: Sequence[int],
    command: Callable[[str, str, int], str],
    device: torch.device,
    **shared: Any,
) -> list[Row]:
    """Return the runs of a grid, seed by seed; `command(loss, noise, seed)` is what re-runs one of them."""
    shared |= {"device": device_name(device), "commit": git_commit()}
    runs: dict[str, Row] = {}
    for seed, noise, spec in itertools.product(seeds, noises, losses):
        name, given = parse_loss(spec)
        run = shared | {
            "loss": name,
            "hyperparameters": hyperparameters(name, given),
            "given": given,
            "noise": noise,
            "seed": seed,
            "command": command(spec, noise, seed),
        }
        runs.setdefault(identity(run), run)
    return list(runs.values())


def identity(row: Row) -> str:
    """Return what a run is known by; 1 and 1.0 are the same."""
    fields = json.dumps({key: row[key] for key in IDENTITY})
    return json.dumps(json.loads(fields, parse_int=float), sort_keys=True)


# The row file


def append_row(path: Path, row: str) -> None:
    """Append a row of JSON in one write, so that rows of several processes do not mix."""
    line = f"{row}\n".encode()
    with path.open("ab+", buffering=0) as file, _locked(file):
        _repair(file)
        if file.write(line) != len(line):
            raise OSError(f"{path}: a row was not written in full; is the disk full?")


def read_rows(path: Path) -> list[Row]:
    """Return all rows, after the repair of a last line that a kill has torn."""
    if not path.exists():
        return []
    with path.open("ab+", buffering=0) as file, _locked(file):
        _repair(file)
        file.seek(0)
        lines = file.read().splitlines()
    if broken := [number for number, line in enumerate(lines, 1) if not _is_row(line)]:
        print(f"{path}: lines {broken} are no rows and are passed over", file=sys.stderr)
    return [json.loads(line) for line in lines if _is_row(line)]


def _repair(file: IO[bytes]) -> None:
    """Drop a torn last line; end a whole one that lacks its newline. The caller holds the lock."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - 2**20))  # a row is far shorter
    tail = file.read()
    if not tail:
        return
    last = tail[tail.rstrip(b"\n").rfind(b"\n") + 1 :]
    if not _is_row(last):
        file.truncate(start + len(tail) - len(last))
    elif not last.endswith(b"\n"):
        file.write(b"\n")


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def can_lock() -> bool:
    """Return whether several processes may share an output folder."""
    return fcntl is not None


@contextlib.contextmanager
def _locked(file: IO[Any], wait: bool = True) -> Iterator[bool]:
    """Hold the lock of an open file, which the kernel frees should we die; yield False if another process has it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
        return
    yield True
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_UN)


# Training


def unfinished(runs: Sequence[Row], setup: Setup) -> list[Row]:
    """Return the runs that lack a row."""
    rows = read_rows(setup.results)
    return [run for run in runs if len(_epochs(rows, run)) < run["epochs"]]


def _epochs(rows: Sequence[Row], run: Row) -> set[int]:
    """Return the epochs of this run that have a row."""
    return {row["epoch"] for row in rows if all(row[key] == run[key] for key in IDENTITY)}


def train_all(runs: Sequence[Row], setup: Setup) -> None:
    """Train what is not done yet. A run that another process is at comes last: it is waited for, or taken over."""
    (setup.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for run in [run for run in runs if not _finish(run, setup, wait=False)]:
        _finish(run, setup, wait=True)


def _finish(run: Row, setup: Setup, *, wait: bool) -> bool:
    """Bring one run to its end, if it is not there; False if another process is at it and we do not wait."""
    name = f"{run['loss']}_{run['noise']}_seed{run['seed']}".replace(":", "-")
    stem = setup.out / "checkpoints" / f"{name}_{hashlib.sha256(identity(run).encode()).hexdigest()[:12]}"
    checkpoint, lock = Path(f"{stem}.pt"), Path(f"{stem}.lock")
    with lock.open("a") as file, _locked(file, wait) as ours:
        if not ours:
            return False
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)  # for people: who has it
        if unfinished([run], setup):
            _train(run, setup, checkpoint)
    for path in (checkpoint, lock):
        path.unlink(missing_ok=True)
    return True


def _train(run: Row, setup: Setup, checkpoint: Path) -> None:
    """Train from the checkpoint, or from the start, to the end; append the rows that are not there yet."""
    written = _epochs(read_rows(setup.results), run)
    task, device, recipe, epochs, seed = setup.task, setup.device, run["recipe"], run["epochs"], run["seed"]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # on the CPU: everywhere the same weights, whatever the loss
        model = setup.models[run["model"]]()
    model = model.to(device, memory_format=torch.channels_last)
    criterion = create_loss(run["loss"], **run["given"]).to(device)
    settings = {"lr": recipe["lr"], "weight_decay": recipe["weight_decay"], "fused": device.type in ("cpu", "cuda")}
    if recipe["optimizer"] == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), **settings)
    else:
        optimizer = torch.optim.SGD(model.parameters(), momentum=recipe["momentum"], **settings)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe["precision"] == "fp16")
    stateful = {"model": model, "criterion": criterion, "optimizer": optimizer, "scaler": scaler}

    noisy = noisy_labels(task, run["noise"], seed)
    flipped = (noisy != task.train_targets).nonzero().squeeze(1)
    labels, wrong = noisy.to(device), noisy[flipped].to(device)
    test_index, test_targets = torch.arange(len(task.test_targets)), task.test_targets.to(device)

    rows: list[str] = []  # as JSON: a hundred dicts would make the checkpoint slow
    if saved := _load(checkpoint, device):
        rows = saved["rows"]
        for key, thing in stateful.items():
            thing.load_state_dict(saved[key])
        for epoch, line in enumerate(rows, 1):
            if epoch not in written:
                append_row(setup.results, line)

    title = f"{run['loss']}{in_brackets(run['given'])} {run['noise']} seed {seed}"
    progress = tqdm(total=epochs, initial=len(rows), desc=title, unit="epoch", disable=None if setup.bar else True)
    printed = time.perf_counter()
    for epoch in range(len(rows) + 1, epochs + 1):
        start = time.perf_counter()
        for group in optimizer.param_groups:  # cosine, epoch by epoch
            group["lr"] = recipe["lr"] * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
        order = torch.randperm(len(labels), generator=generator).to(device).split(recipe["batch_size"])
        inputs = task.epoch_inputs(order, generator)
        train_loss = _train_epoch(model, criterion, optimizer, scaler, inputs, [labels[i] for i in order], recipe)
        test_accuracy = _agreement(model, task.test_inputs, test_index, test_targets, recipe["precision"])
        memorised = None
        if len(flipped) and (epoch % setup.memorised_every == 0 or epoch == epochs):
            memorised = _agreement(model, task.train_inputs, flipped, wrong, recipe["precision"])
        row = {key: run[key] for key in IDENTITY} | {
            "epoch": epoch,
            "train_loss": train_loss if math.isfinite(train_loss) else None,  # JSON has no NaN
            "test_accuracy": test_accuracy,
            "memorised": memorised,
            "seconds": round(time.perf_counter() - start, 3),
            "device": run["device"],
            "torch": torch.__version__,
            "commit": run["commit"],
            "command": run["command"],
        }
        rows.append(json.dumps(row))
        # The order matters: a kill between the two leaves the row in the checkpoint, where the next start finds it.
        _save(checkpoint, {key: thing.state_dict() for key, thing in stateful.items()} | {"rows": rows})
        if epoch not in written:
            append_row(setup.results, rows[-1])

        status = f"test {test_accuracy:.2f} %" + ("" if memorised is None else f", memorised {memorised:.2f} %")
        progress.set_postfix_str(status, refresh=False)
        progress.update()
        if progress.disable and (epoch == epochs or time.perf_counter() - printed > 5):
            print(f"{title}: epoch {epoch}/{epochs}, {status}, {row['seconds']:.2f} s an epoch", flush=True)
            printed = time.perf_counter()
    progress.close()


def _train_epoch(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    inputs: Iterable[Tensor],
    targets: Sequence[Tensor],
    recipe: Mapping[str, Any],
) -> float:
    """Train on all batches; return the mean of the loss, the L1 penalty left out."""
    model.train()
    parameters = list(model.parameters())
    total, count = torch.zeros((), device=targets[0].device), 0
    for x, y in zip(inputs, targets, strict=True):
        with _autocast(x.device, recipe["precision"]):
            logits = model(x)
        loss = criterion(logits.float(), y)
        total += loss.detach() * len(y)  # read at the end: no step waits for the device
        count += len(y)
        if recipe["l1"]:
            loss = loss + recipe["l1"] * l1_penalty(parameters)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if recipe["clip"]:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, recipe["clip"])
        scaler.step(optimizer)
        scaler.update()
    return float(total) / count


@torch.inference_mode()
def _agreement(
    model: nn.Module, inputs: Callable[[Tensor], Tensor], index: Tensor, targets: Tensor, precision: str
) -> float:
    """Return the percentage of the samples at `index` for which the network predicts the target."""
    model.eval()
    size = 250 if targets.device.type == "cpu" else 2500  # what fits a CPU's cache
    batches = zip(index.to(targets.device).split(size), targets.split(size), strict=True)
    with _autocast(targets.device, precision):
        hits = [(model(inputs(part)).argmax(1) == target).sum() for part, target in batches]
    return 100 * int(torch.stack(hits).sum()) / len(index)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "fp32")


def _save(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _load(path: Path, device: torch.device) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise; the run only costs its time again
        print(f"{path}: this checkpoint cannot be read ({error}); its run starts again", file=sys.stderr)
        return None


# Where and when


def device_name(device: torch.device) -> str:
    """Return the device in words, a CPU with the instructions that torch uses: names like AMD EPYC say little."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    name = f"{name} with {torch.backends.cpu.get_cpu_capability()}"
    return f"CPU {name}, {torch.get_num_threads()} thread{'s'[: torch.get_num_threads() > 1]}"


@functools.cache  # what runs is what was there at the start, whatever happens to the files in the hours after
def git_commit() -> str | None:
    """Return the short hash of the commit, -dirty if a tracked file differs; None outside git.

    None too if the losses are not those of this repository, but of another clone or an installed wheel.
    """
    here, losses = Path(__file__).resolve().parent, Path(noisyloss.__file__).resolve()
    if losses.parents[1] != here.parent:
        return None
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
