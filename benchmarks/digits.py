"""Robust losses on digits with wrong labels, in a minute and without a download: `python benchmarks/digits.py`.

scikit-learn's 1797 digits of 8×8 pixels, an MLP with batch norm, 40 % and 60 % symmetric label noise, 100 epochs.
Long enough for cross entropy to memorise the wrong labels: its curve rises, then falls, and "memorised" shows why.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import workers
from harness import (
    DROP_IN,
    Row,
    Setup,
    Task,
    at_least,
    check,
    make_runs,
    parse_loss,
    parse_noise,
    read_rows,
    shell_command,
)
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tables import report
from torch import nn

from noisyloss.noise import MNIST_MAPPING

LOSSES = ["ce", "focal", "nce", "mae", "gce", "nce+rce", "nfl+rce", DROP_IN]
RECIPE = {
    "optimizer": "sgd",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "l1": 0.0,
    "batch_size": 64,
    "clip": None,
    "precision": "fp32",
}


def mlp() -> nn.Module:
    """64-256-256-10 with batch norm."""
    hidden = [nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def digits() -> Task:
    """1257 digits to train on and 540 to test with, pixels in [-1/2, 1/2]."""
    images, targets = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16 - 0.5, dtype=torch.float32)
    parts = train_test_split(range(len(targets)), test_size=0.3, stratify=targets, random_state=0)
    train, test = (torch.tensor(part) for part in parts)
    train_x, test_x = inputs[train], inputs[test]
    targets = torch.tensor(targets)
    return Task(
        name="digits",
        num_classes=10,
        mapping=MNIST_MAPPING,
        train_targets=targets[train],
        test_targets=targets[test],
        train_inputs=lambda index: train_x[index],
        test_inputs=lambda index: test_x[index],
        epoch_inputs=lambda order, generator: (train_x[index] for index in order),
        features=train_x,
    )


def prepare(args: argparse.Namespace, worker: int) -> tuple[list[Row], Setup]:
    """Return the runs and what they are trained with."""

    def command(loss: str, noise: str, seed: int) -> str:
        return shell_command("digits.py", out=args.out, losses=loss, noise=noise, seeds=seed, epochs=args.epochs)

    torch.set_num_threads(1)  # tensors this small do not gain from more
    device = torch.device("cpu")
    protocol = {"dataset": "digits", "model": "mlp", "epochs": args.epochs, "recipe": RECIPE}
    runs = make_runs(args.losses, args.noise, args.seeds, command, device, **protocol)
    return runs, Setup(digits(), {"mlp": mlp}, args.out, device, bar=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/digits"), help="results.jsonl and plots (default: %(default)s)")
    add("--losses", nargs="+", metavar="ID", default=LOSSES)
    add("--noise", nargs="+", metavar="KIND", default=["symmetric:0.4", "symmetric:0.6"])
    add("--seeds", nargs="+", metavar="N", type=at_least(0), default=[0, 1])
    add("--epochs", metavar="N", type=at_least(1), default=100)
    workers.add_options(parser, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args(argv)
    check(parser, "--losses", args.losses, parse_loss)
    check(parser, "--noise", args.noise, parse_noise)
    workers.check(parser, args)
    workers.train(prepare, args)
    return report(read_rows(args.out / "results.jsonl"), args.out)


if __name__ == "__main__":
    main()
