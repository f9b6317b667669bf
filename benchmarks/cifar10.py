"""Robust losses on CIFAR-10 with wrong labels: single runs and grids, with the recipe of the papers.

    python benchmarks/cifar10.py --losses ce nce+rce --noise symmetric:0.4 --seeds 0 1 2 --model cnn8

A loss is an id, with hyper-parameters if need be: nce+rce:alpha=10,beta=0.1. Noise is clean, symmetric:0.4,
asymmetric:0.4, sequential:0.4 (asymmetric as the papers' code drew it) or pairflip:0.3. What is done is skipped, what
was killed goes on: start the same command again. Started twice at once, with --threads 1, two processes share the grid.
On a CPU, the same seed and number of threads give the same curve bit for bit; on CUDA the kernels' sums may differ.
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

# Clean-test accuracy of cnn8 after 120 epochs, mean ± std of 3 runs, as far as a public source could be read.
# APL: the stored output of plot_results.ipynb in HanxunH/Active-Passive-Losses at 89fa39a, the authors' own; the paper
# itself could not be read and may differ. Its asymmetric noise is sequential.
# JAL: a public reading note on Wang et al., ICCV 2025, who re-ran the losses with exact noise; secondary, means only.
APL, JAL = "Ma et al. 2020, authors' notebook", "Wang et al. 2025, secondary"
PUBLISHED = {
    (loss, noise): f"{accuracy} ({source})"
    for source, noises, rows in (
        (
            APL,
            ("clean", "symmetric:0.2", "symmetric:0.4", "symmetric:0.6", "symmetric:0.8"),
            {
                "ce": ("90.36 ± 0.03", "75.90 ± 0.28", "60.28 ± 0.27", "40.90 ± 0.35", "19.65 ± 0.46"),
                "focal": ("89.63 ± 0.25", "74.59 ± 0.49", "57.55 ± 0.39", "38.91 ± 0.62", "19.43 ± 0.27"),
                "gce": ("89.38 ± 0.23", "87.37 ± 0.21", "83.33 ± 0.39", "72.00 ± 0.37", "29.08 ± 0.80"),
                "sce": ("91.30 ± 0.22", "88.05 ± 0.26", "82.06 ± 0.24", "66.08 ± 0.25", "30.69 ± 0.63"),
                "mae": ("88.75 ± 0.26", "86.79 ± 0.18", "84.41 ± 0.10", "78.22 ± 0.31", "50.42 ± 1.29"),
                "rce": ("88.05 ± 3.65", "85.69 ± 3.15", "86.09 ± 0.18", "77.38 ± 3.69", "45.04 ± 5.29"),
                "nce": ("75.40 ± 0.44", "73.38 ± 0.46", "69.90 ± 0.48", "63.36 ± 0.68", "44.22 ± 0.24"),
                "nfl+mae": ("89.25 ± 0.19", "87.33 ± 0.14", "83.81 ± 0.06", "76.36 ± 0.31", "45.23 ± 0.52"),
                "nfl+rce": ("90.91 ± 0.02", "89.14 ± 0.13", "86.05 ± 0.12", "79.78 ± 0.13", "55.06 ± 1.08"),
                "nce+mae": ("88.83 ± 0.34", "87.12 ± 0.21", "84.19 ± 0.43", "77.61 ± 0.05", "49.62 ± 0.72"),
                "nce+rce": ("90.76 ± 0.22", "89.22 ± 0.27", "86.02 ± 0.09", "79.78 ± 0.50", "52.71 ± 1.90"),
            },
        ),
        (
            APL,
            ("sequential:0.1", "sequential:0.2", "sequential:0.3", "sequential:0.4"),
            {
                "ce": ("87.38 ± 0.16", "83.62 ± 0.15", "79.38 ± 0.28", "75.00 ± 0.50"),
                "focal": ("86.35 ± 0.30", "82.97 ± 0.14", "79.48 ± 0.21", "74.60 ± 0.15"),
                "gce": ("88.42 ± 0.07", "86.07 ± 0.31", "80.78 ± 0.21", "74.98 ± 0.32"),
                "nfl+mae": ("88.46 ± 0.20", "86.81 ± 0.32", "83.91 ± 0.34", "77.16 ± 0.10"),
                "nfl+rce": ("90.20 ± 0.15", "88.73 ± 0.29", "85.74 ± 0.22", "79.27 ± 0.43"),
                "nce+mae": ("88.25 ± 0.09", "86.44 ± 0.23", "83.98 ± 0.52", "78.23 ± 0.42"),
                "nce+rce": ("89.95 ± 0.20", "88.56 ± 0.17", "85.58 ± 0.44", "79.59 ± 0.40"),
            },
        ),
        (
            JAL,
            ("asymmetric:0.2", "asymmetric:0.4"),
            {"ce": ("83.05", "73.85"), "nce": ("72.20", "65.33"), "nce+rce": ("88.62", "77.94")},
        ),
    )
    for loss, accuracies in rows.items()
    for noise, accuracy in zip(noises, accuracies, strict=True)
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
    if row["model"] != "cnn8" or row["hyperparameters"] != hyperparameters(row["loss"], {}):
        return "-"
    return PUBLISHED.get((row["loss"], row["noise"]), "-")


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
    add("--threads", metavar="N", type=at_least(1), help="1 on a machine that others use: threads wait for each other")
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
