"""Robust losses on CIFAR-10 with wrong labels: single runs and grids, with the recipe of the papers.

    python benchmarks/cifar10.py --losses ce nce+rce --noise symmetric:0.4 --seeds 0 1 2 --model cnn8

A loss is an id, with hyper-parameters if need be: nce+rce:alpha=10,beta=0.1. Noise is clean, symmetric:0.4,
asymmetric:0.4, sequential:0.4 (asymmetric as the papers' code drew it) or pairflip:0.3. What is done is skipped, what
was killed goes on: start the same command again. Started twice at once (with --threads), two processes share the grid.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from harness import (
    Row,
    Setup,
    Task,
    at_least,
    check,
    hyperparameters,
    make_runs,
    parse_loss,
    read_rows,
    report,
    shell_command,
    train_all,
    transition_matrix,
)
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

from noisyloss.noise import CIFAR10_MAPPING

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PAD = 4  # of the random crop

# Clean-test accuracy of cnn8 at the last of 120 epochs, under (loss with its default hyper-parameters, noise).
# "verified" says how the number was read: "secondary" in a public reading note on the paper, not in the paper itself.
JAL = {"source": "JAL, ICCV 2025", "verified": "secondary"}
ANL = {"source": "ANL, NeurIPS 2023", "verified": "secondary"}
PUBLISHED = {
    ("ce", "symmetric:0.4"): {"accuracy": 58.05, **JAL},
    ("ce", "symmetric:0.8"): {"accuracy": 19.74, **JAL},
    ("ce", "asymmetric:0.2"): {"accuracy": 83.05, **JAL},
    ("ce", "asymmetric:0.4"): {"accuracy": 73.85, **JAL},
    ("nce", "symmetric:0.4"): {"accuracy": 69.37, **JAL},
    ("nce", "symmetric:0.8"): {"accuracy": 41.20, **JAL},
    ("nce", "asymmetric:0.2"): {"accuracy": 72.20, **JAL},
    ("nce", "asymmetric:0.4"): {"accuracy": 65.33, **JAL},
    ("nce+rce", "symmetric:0.4"): {"accuracy": 85.89, **JAL},
    ("nce+rce", "symmetric:0.8"): {"accuracy": 54.99, **JAL},
    ("nce+rce", "asymmetric:0.2"): {"accuracy": 88.62, **JAL},
    ("nce+rce", "asymmetric:0.4"): {"accuracy": 77.94, **JAL},
    ("nce+agce", "symmetric:0.8"): {"accuracy": 55.62, **ANL},
}


# Models. Max-pooling goes before the ReLU: the two commute, values and gradients, and a quarter is left to rectify.


def cnn4() -> nn.Module:
    """Four layers without batch norm."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(inplace=True), nn.Linear(128, 10)),
    )


def cnn4bn() -> nn.Module:
    """Four layers with batch norm."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(128 * 4 * 4, 10)),
    )


def cnn8() -> nn.Module:
    """Eight layers, the CNN of Ma et al. (2020) and those who followed: 1,639,794 parameters."""

    def block(a: int, b: int) -> list[nn.Module]:
        first = [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        return [*first, nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.MaxPool2d(2), nn.ReLU(inplace=True)]

    model = nn.Sequential(
        *(*block(3, 64), *block(64, 128), *block(128, 196), nn.Flatten()),
        *(nn.Linear(196 * 4 * 4, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Linear(256, 10)),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return model


MODELS = {"cnn4": cnn4, "cnn4bn": cnn4bn, "cnn8": cnn8}
EPOCHS = {"cnn4": 30, "cnn4bn": 30, "cnn8": 120}


# Data


def load(folder: Path) -> tuple[np.ndarray, list[int], np.ndarray, list[int]]:
    """Return CIFAR-10, from the folder or else from the network: uint8 images (N, 32, 32, 3) and labels, twice."""
    parts = []
    for train in (True, False):
        try:
            data = CIFAR10(folder, train=train)
        except RuntimeError:  # not there
            try:
                data = CIFAR10(folder, train=train, download=True)
            except Exception as error:  # no network, no space, no permission, a broken file: all end here
                raise SystemExit(
                    f"CIFAR-10 is not in {folder}, and the download failed ({error}). Put cifar-10-python.tar.gz from "
                    "https://www.cs.toronto.edu/~kriz/cifar.html there, as it is or unpacked to cifar-10-batches-py, "
                    "or name its folder with --data DIR."
                ) from error
        parts += [data.data, data.targets]
    return tuple(parts)


def cifar10(
    train_images: np.ndarray,
    train_targets: Sequence[int],
    test_images: np.ndarray,
    test_targets: Sequence[int],
    device: torch.device,
) -> Task:
    """Return the task: images stay on the device as uint8, the padding of the crop (black) included."""
    padded = F.pad(torch.from_numpy(train_images).to(device), (0, 0, PAD, PAD, PAD, PAD))
    plain = padded[:, PAD:-PAD, PAD:-PAD]
    test = torch.from_numpy(test_images).to(device)
    scale = 1 / (255 * torch.tensor(STD, device=device))
    shift = -torch.tensor(MEAN, device=device) / torch.tensor(STD, device=device)

    def normalise(images: Tensor) -> Tensor:
        return (images.float() * scale + shift).permute(0, 3, 1, 2)  # channels last, as the convolutions like it

    def epoch_inputs(order: Sequence[Tensor], generator: torch.Generator) -> Iterator[Tensor]:
        return map(normalise, crop_and_flip(padded, order, generator))

    return Task(
        name="cifar10",
        num_classes=10,
        mapping=CIFAR10_MAPPING,
        train_targets=torch.tensor(train_targets),
        test_targets=torch.tensor(test_targets),
        train_inputs=lambda index: normalise(plain[index]),
        test_inputs=lambda index: normalise(test[index]),
        epoch_inputs=epoch_inputs,
    )


def crop_and_flip(padded: Tensor, order: Sequence[Tensor], generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of random windows of the padded images (N, H, W, C), half of them mirrored."""
    count, height, width, _ = padded.shape
    y, x = torch.randint(2 * PAD + 1, (2, count), generator=generator).to(padded.device)
    mirrored = torch.randint(2, (count,), generator=generator).to(padded.device).bool()
    windows = padded.unfold(1, height - 2 * PAD, 1).unfold(2, width - 2 * PAD, 1)  # a view: (N, y, x, C, H, W)
    for index in order:
        batch = windows[index, y[index], x[index]].permute(0, 2, 3, 1)
        yield torch.where(mirrored[index, None, None, None], batch.flip(2), batch)


# The command line


def published(row: Row) -> str:
    """Return the published accuracy of a run, with its source."""
    entry = PUBLISHED.get((row["loss"], row["noise"]))
    if row["model"] != "cnn8" or not entry or row["hyperparameters"] != hyperparameters(row["loss"], {}):
        return "-"
    return f"{entry['accuracy']:.2f} ({entry['source']}, {entry['verified']})"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid, then print the table and save the plots."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noisyloss"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", default=cache, help="with cifar-10-batches-py (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", default=Path("out/cifar10"), help="of rows and plots (default: %(default)s)")
    add("--model", choices=MODELS, default="cnn4")
    add("--losses", nargs="+", metavar="ID", default=["ce", "nce+rce"])
    add("--noise", nargs="+", metavar="KIND", default=["symmetric:0.4"])
    add("--seeds", nargs="+", metavar="N", type=at_least(0), default=[0])
    add("--epochs", metavar="N", type=at_least(1), help="default: 120 for cnn8, else 30")
    add("--batch-size", metavar="N", type=at_least(1), default=128)
    add("--lr", metavar="X", type=at_least(0, float), default=0.01, help="at the start of the cosine (default: 0.01)")
    add("--momentum", metavar="X", type=at_least(0, float), default=0.9)
    add("--weight-decay", metavar="X", type=at_least(0, float), default=1e-4, help="L2 (default: 1e-4)")
    add("--l1", metavar="X", type=at_least(0, float), default=0.0, help="times the sum of all |parameters|")
    add("--clip", metavar="X", type=at_least(0, float), default=5.0, help="norm of the gradient; 0: no limit")
    add("--device", help="default: cuda if there is one, else cpu")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="auto: bf16 on a CPU, else fp32")
    add("--threads", metavar="N", type=at_least(1), help="of the CPU")
    add("--table", action="store_true", help="no training: table and plots of the rows in --out")
    args = parser.parse_args(argv)
    if args.table:
        return report(read_rows(args.out / "results.jsonl"), args.out, published)

    check(parser, "--losses", args.losses, parse_loss)
    check(parser, "--noise", args.noise, lambda noise: transition_matrix(noise, 10, CIFAR10_MAPPING))
    if args.threads:
        torch.set_num_threads(args.threads)
    device = find_device(parser, args.device)
    recipe = {
        "optimizer": "sgd",
        "lr": args.lr,
        "momentum": args.momentum,
        "weight_decay": args.weight_decay,
        "l1": args.l1,
        "batch_size": args.batch_size,
        "clip": args.clip or None,
        "precision": find_precision(parser, args.precision, device),
    }
    epochs = args.epochs or EPOCHS[args.model]

    def command(loss: str, noise: str, seed: int) -> str:
        options = {"data": args.data if args.data != cache else None, "out": args.out, "model": args.model}
        options |= {"losses": loss, "noise": noise, "seeds": seed, "epochs": epochs}
        options |= recipe | {"optimizer": None, "clip": args.clip}
        return shell_command("cifar10.py", **options, device=args.device, threads=args.threads)

    protocol = {"dataset": "cifar10", "model": args.model, "epochs": epochs, "recipe": recipe}
    runs = make_runs(args.losses, args.noise, args.seeds, command, device, **protocol)
    task = cifar10(*load(args.data), device)
    torch.backends.cudnn.benchmark = True
    train_all(runs, Setup(task, MODELS, args.out, device, memorised_every=5 if device.type == "cpu" else 1))
    return report(read_rows(args.out / "results.jsonl"), args.out, published)


def find_device(parser: argparse.ArgumentParser, name: str | None) -> torch.device:
    """Return the device that is asked for, or the best; stop with a message where it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"argument --device: {name}: {str(error).splitlines()[0]}")
    return device


def find_precision(parser: argparse.ArgumentParser, name: str, device: torch.device) -> str:
    """Return the precision that is asked for; auto is bf16 on a CPU with the instructions that make it fast."""
    if name == "fp16" and device.type != "cuda":
        parser.error("argument --precision: fp16 needs --device cuda")
    if name != "auto":
        return name
    fast = device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "bf16" if fast else "fp32"


if __name__ == "__main__":
    main()
