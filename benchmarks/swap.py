"""Swap it in for cross entropy, change nothing else: does it train, and what does it gain?

    python benchmarks/swap.py                                # digits and synthetic clusters of 10, 100 and 1000 classes
    python benchmarks/swap.py --tasks cifar10 cifar10-10k    # the real images, hours on a CPU

Networks, optimizers and schedules are those one would use with cross entropy; only the loss differs. Two numbers
matter. *Regret*: cross entropy's accuracy minus the loss's, on clean labels and on short schedules, where robustness
has nothing to win. *Gain*: the loss's minus cross entropy's on noisy labels at the end of long schedules, where cross
entropy has memorised. A grid over tasks, models, optimizers, epochs and noise; every option below keeps a part of it.
What is done is skipped, what was killed goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from cifar10 import cifar10, cnn4, cnn4bn, fastest_precision, load
from digits import digits, mlp
from harness import (
    DROP_IN,
    Row,
    Setup,
    Task,
    at_least,
    check,
    device_name,
    make_runs,
    parse_loss,
    read_rows,
    shell_command,
    train_all,
)
from tables import loss_label, markdown_table, mean_std, noise_place
from torch import nn

OPTIMIZERS = {
    "sgd:0.1": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    "sgd:0.01": {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
    "adamw:0.001": {"optimizer": "adamw", "lr": 1e-3, "momentum": None, "weight_decay": 1e-2},
}
LOSSES = ["gce", "nce+rce", "nce+rce:logit_bias=auto", DROP_IN]
NOISES = ["clean", "symmetric:0.2", "symmetric:0.4", "symmetric:0.8", "asymmetric:0.4"]
SHORT = 10  # epochs, at most
MEMORISED = 50  # per cent of the wrong labels, at least: here cross entropy has had the time


@dataclass(frozen=True)
class Suite:
    """A task with what is trained on it."""

    task: Callable[[argparse.Namespace], Task]
    models: Mapping[str, Callable[[], nn.Module]]
    epochs: Sequence[int]
    recipe: Mapping[str, object]
    noises: Sequence[str] = tuple(NOISES)


def plain_mlp(inputs: int = 64, classes: int = 10) -> nn.Module:
    """Two hidden layers of 256, without batch norm."""
    hidden = [nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(256, classes))


def clusters(classes: int) -> Task:
    """10,000 points to train on and 5,000 to test with around as many random centres as there are classes."""
    generator = torch.Generator().manual_seed(classes)
    centres = torch.randn(classes, 64, generator=generator)
    targets = torch.arange(15_000) % classes
    points = centres[targets] + 0.9 * torch.randn(15_000, 64, generator=generator)
    return Task(
        name=f"clusters{classes}",
        num_classes=classes,
        mapping={k: (k + 1) % classes for k in range(0, classes, 2)},
        train_targets=targets[:10_000],
        test_targets=targets[10_000:],
        train_inputs=lambda index: points[index],
        test_inputs=lambda index: points[10_000 + index],
        epoch_inputs=lambda order, generator: (points[index] for index in order),
    )


def few_images(task: Task, count: int = 10_000) -> Task:
    """Keep the first images only, and as they are: cross entropy soon memorises these."""
    return dataclasses.replace(
        task,
        name="cifar10-10k",
        train_targets=task.train_targets[:count],
        features=None if task.features is None else task.features[:count],
        epoch_inputs=lambda order, generator: map(task.train_inputs, order),
    )


def images(args: argparse.Namespace) -> Task:
    """CIFAR-10, augmented."""
    return cifar10(*load(args.data), torch.device("cpu"))


SMALL = {"l1": 0.0, "batch_size": 64, "clip": None, "precision": "fp32"}
LARGE = {"l1": 0.0, "batch_size": 128, "clip": 5.0, "precision": fastest_precision(torch.device("cpu"))}
CNNS = {"cnn4": cnn4, "cnn4bn": cnn4bn}
SUITES = {
    "digits": Suite(lambda args: digits(), {"mlp": mlp, "mlp-plain": plain_mlp}, (5, 100), SMALL),
    **{
        f"clusters{classes}": Suite(
            lambda args, classes=classes: clusters(classes),
            {"mlp-plain": functools.partial(plain_mlp, classes=classes)},
            (5, 30),
            SMALL,
            ("clean", "symmetric:0.4"),
        )
        for classes in (10, 100, 1000)
    },
    "cifar10": Suite(images, CNNS, (5, 30), LARGE),
    "cifar10-10k": Suite(lambda args: few_images(images(args)), CNNS, (30,), LARGE),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not there yet, then print the table."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noisyloss"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("out/swap"), help="of rows (default: %(default)s)")
    add("--data", type=Path, metavar="DIR", default=cache, help="with cifar-10-batches-py (default: %(default)s)")
    add("--tasks", nargs="+", choices=SUITES, default=[name for name in SUITES if "cifar10" not in name])
    add("--models", nargs="+", metavar="NAME", help="default: all of the task")
    add("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    add("--epochs", nargs="+", metavar="N", type=at_least(1), help="default: a short and a long schedule")
    add("--noise", nargs="+", choices=NOISES, help="default: all of the task")
    add("--losses", nargs="+", metavar="ID", default=LOSSES, help="beside ce (default: %(default)s)")
    add("--seeds", nargs="+", metavar="N", type=at_least(0), default=[0])
    add("--threads", metavar="N", type=at_least(1), default=1, help="the small networks gain from no more (default: 1)")
    add("--table", action="store_true", help="no training: the table of the rows in --out")
    args = parser.parse_args(argv)
    results = args.out / "results.jsonl"
    if args.table:
        return print(report(read_rows(results)))
    check(parser, "--losses", args.losses, parse_loss)
    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    for name in args.tasks:
        suite = SUITES[name]
        setup = Setup(suite.task(args), suite.models, args.out, device, memorised_every=5)
        parts = (args.epochs or suite.epochs, args.models or suite.models, args.optimizers)
        for epochs, model, optimizer in itertools.product(*parts):
            options = {"out": args.out, "tasks": name, "models": model, "optimizers": optimizer, "epochs": epochs}
            options |= {"threads": args.threads}

            def command(loss: str, noise: str, seed: int, options: Row = options) -> str:
                return shell_command("swap.py", **options, losses=loss, noise=noise, seeds=seed)

            protocol = {"dataset": setup.task.name, "model": model, "epochs": epochs}
            protocol["recipe"] = OPTIMIZERS[optimizer] | suite.recipe
            noises = args.noise or suite.noises
            train_all(make_runs(["ce", *args.losses], noises, args.seeds, command, device, **protocol), setup)
    print(f"\n{device_name(device)}\n\n{report(read_rows(results))}")
    return None


Cells = dict[str, list[Row]]  # the last epochs by loss


def report(rows: Iterable[Row]) -> str:
    """Return the table of every setting, and what it comes to for every loss."""
    rows = [row for row in rows if row["epoch"] == row["epochs"]]
    labels = {id(row): loss_label(row, rows) for row in rows}
    settings: dict[tuple[str, ...], Cells] = {}
    for row in sorted(rows, key=_place):
        settings.setdefault(_setting(row), {}).setdefault(labels[id(row)], []).append(row)
    settings = {setting: cells for setting, cells in settings.items() if "ce" in cells}
    losses = list(dict.fromkeys(["ce", *(label for cells in settings.values() for label in cells)]))
    lines = [["task", "model", "optimizer", "epochs", "precision", "noise", "memorised by ce", *losses]]
    for setting, cells in settings.items():
        memorised = [row["memorised"] for row in cells["ce"] if row["memorised"] is not None]
        accuracies = ([row["test_accuracy"] for row in cells.get(loss, [])] for loss in losses)
        lines.append([*setting, mean_std(memorised), *map(mean_std, accuracies)])
    return f"{markdown_table(lines)}\n\n{markdown_table(_verdicts(list(settings.values()), losses))}"


def _verdicts(settings: Sequence[Cells], losses: Sequence[str]) -> list[list[str]]:
    heads = ["worst regret, clean", "worst regret, short", "least gain, symmetric:0.4, memorised", "below twice chance"]
    lines = [["loss", *heads, "settings"]]
    for loss in losses[1:]:
        both = [cells for cells in settings if loss in cells]
        clean, short, gain, dead = [], [], [], []
        for cells in both:
            ce, ours = (_mean(cells[name], "test_accuracy") for name in ("ce", loss))
            first = cells["ce"][0]
            if first["noise"] == "clean":
                clean.append(ce - ours)
            if first["epochs"] <= SHORT:
                short.append(ce - ours)
            elif first["noise"] == "symmetric:0.4" and _mean(cells["ce"], "memorised") >= MEMORISED:
                gain.append(ours - ce)
            chance = 200 / int(first["dataset"].removeprefix("clusters") if "clusters" in first["dataset"] else 10)
            dead.append(ours < chance)
        worst = [
            f"{pick(values):+.1f}" if values else "-" for pick, values in ((max, clean), (max, short), (min, gain))
        ]
        lines.append([loss, *worst, str(sum(dead)), str(len(both))])
    return lines


def _mean(rows: Sequence[Row], field: str) -> float:
    return sum(row[field] or 0.0 for row in rows) / len(rows)


def _setting(row: Row) -> tuple[str, ...]:
    protocol = row["dataset"], row["model"], _optimizer(row), str(row["epochs"]), row["recipe"]["precision"]
    return *protocol, row["noise"]


def _optimizer(row: Row) -> str:
    return f"{row['recipe']['optimizer']}:{row['recipe']['lr']}"


def _place(row: Row) -> tuple[object, ...]:
    task = [*SUITES].index(row["dataset"])
    place = task, row["model"], row["epochs"], _optimizer(row), row["recipe"]["precision"]
    return *place, noise_place(row["noise"]), row["loss"].count("+")


if __name__ == "__main__":
    main()
