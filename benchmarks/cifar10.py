"""Robust losses on CIFAR-10 with wrong labels: single runs and grids, with the recipe of the papers.

    python benchmarks/cifar10.py --losses ce nce+rce --noise symmetric:0.4 --seeds 0 1 2 --model cnn8

    python benchmarks/cifar10.py --recipe apl --seeds 0 1 2 --workers 8      # all of a paper, on all GPUs
    python benchmarks/cifar10.py --table apl                                 # beside the published numbers

A loss is an id, with hyper-parameters if need be: nce+rce:alpha=10,beta=0.1. Noise is clean, symmetric:0.4,
asymmetric:0.4, sequential:0.4 (asymmetric as the papers' code drew it), pairflip:0.3, instance:0.4 (it depends on the
image), or human:worst, aggre, random1, random2, random3 (CIFAR-10N). What is done is skipped, what was killed goes on:
start the same command again. On a CPU, the same seed and number of threads give the same curve bit for bit; on CUDA the
labels and the initial weights are the same, and the curve up to the order of the kernels' sums.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import workers
from harness import (
    HUMAN,
    Row,
    Setup,
    Task,
    at_least,
    check,
    identity,
    make_runs,
    parse_loss,
    parse_noise,
    read_rows,
    shell_command,
)
from papers import PROTOCOL, RECIPES, Entry
from tables import paper_table, published, report
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

from noisyloss.noise import CIFAR10_MAPPING, load_cifar10n

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PAD = 4  # of the random crop


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
    human: Mapping[str, Tensor] | None = None,
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
        features=torch.from_numpy(train_images),  # raw pixels, as in the code of Xia et al.
        human=human or {},
    )


def load_human(path: Path, train_targets: Sequence[int]) -> dict[str, Tensor]:
    """Return the labels of CIFAR-10N; stop with a message where they are not there, or not in our order."""
    try:
        labels = load_cifar10n(path)
    except FileNotFoundError:
        raise SystemExit(
            f"CIFAR-10N is not at {path}. Put CIFAR-10_human.pt from https://github.com/UCSC-REAL/cifar-10-100n "
            "(CC BY-NC 4.0) there, or name it with --human FILE."
        ) from None
    if labels.pop("clean").tolist() != list(train_targets):
        raise SystemExit(f"{path}: the images are in another order than those of CIFAR-10 in --data")
    return labels


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

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noisyloss"
RESULTS = Path(__file__).parent / "results"


def prepare(args: argparse.Namespace, worker: int) -> tuple[list[Row], Setup]:
    """Return the runs, and what this worker trains them with."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    keep_freed_memory()
    device = torch.device(args.device or workers.device_of(worker))

    def command(entry: Entry, loss: str, noise: str, seed: int) -> str:
        options = {"data": args.data if args.data != CACHE else None, "human": args.human, "out": args.out}
        options |= {"model": args.model, "losses": loss, "noise": noise, "seeds": seed, "epochs": args.epochs}
        options |= recipe(entry) | {"optimizer": None, "clip": args.clip}
        return shell_command("cifar10.py", **options, device=args.device, threads=args.threads)

    def recipe(entry: Entry) -> Row:
        return {
            "optimizer": "sgd",
            "lr": args.lr,
            "momentum": args.momentum,
            "weight_decay": entry.weight_decay if args.weight_decay is None else args.weight_decay,
            "l1": entry.l1 if args.l1 is None else args.l1,
            "batch_size": args.batch_size,
            "clip": args.clip or None,
            "precision": args.precision if args.precision != "auto" else fastest_precision(device),
        }

    runs: dict[str, Row] = {}
    for seed, noise, entry in itertools.product(args.seeds, args.noise, args.entries):
        protocol = {"dataset": "cifar10", "model": args.model, "epochs": args.epochs, "recipe": recipe(entry)}
        (run,) = make_runs([entry.loss], [noise], [seed], functools.partial(command, entry), device, **protocol)
        runs.setdefault(identity(run), run)

    data = load(args.data)
    wanted = any(noise.startswith("human:") for noise in args.noise)
    human = load_human(args.human or args.data / "CIFAR-10_human.pt", data[1]) if wanted else None
    setup = Setup(cifar10(*data, device, human), MODELS, args.out, device, 5 if device.type == "cpu" else 1)
    return list(runs.values()), setup


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid, then print the table and save the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", default=CACHE, help="with cifar-10-batches-py (default: %(default)s)")
    add("--human", type=Path, metavar="FILE", help="labels of CIFAR-10N (default: CIFAR-10_human.pt in --data)")
    add("--out", type=Path, metavar="DIR", default=Path("out/cifar10"), help="of rows and plots (default: %(default)s)")
    add(
        "--recipe",
        choices=RECIPES,
        help="losses, noise, model and penalties of a paper; what is given here comes first",
    )
    add("--model", choices=MODELS, help="default: cnn8 with --recipe and --table PAPER, else cnn4")
    add("--losses", nargs="+", metavar="ID", help="default: ce nce+rce")
    add("--noise", nargs="+", metavar="KIND", help="default: symmetric:0.4")
    add("--seeds", nargs="+", metavar="N", type=at_least(0), default=[0])
    add("--epochs", metavar="N", type=at_least(1), help="default: 120 for cnn8, else 30")
    add("--batch-size", metavar="N", type=at_least(1), default=PROTOCOL["batch_size"])
    add("--lr", metavar="X", type=at_least(0, float), default=PROTOCOL["lr"], help="at the start of the cosine")
    add("--momentum", metavar="X", type=at_least(0, float), default=PROTOCOL["momentum"])
    add("--weight-decay", metavar="X", type=at_least(0, float), help="L2 (default: 1e-4, or the recipe's)")
    add(
        "--l1",
        metavar="X",
        type=at_least(0, float),
        help="times the sum of all |parameters| (default: 0, or the recipe's)",
    )
    add("--clip", metavar="X", type=at_least(0, float), default=PROTOCOL["clip"], help="norm of the gradient; 0: none")
    add("--device", help="default: cuda if there is one, else cpu")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="auto: bf16 if a CPU has it")
    add("--threads", metavar="N", type=at_least(1), help="1 on a machine that others use: threads wait for each other")
    workers.add_options(parser)
    add(
        "--table",
        nargs="?",
        const="",
        choices=["", *RECIPES],
        metavar="PAPER",
        help="no training: the tables and plots of the rows in --out; or those committed in benchmarks/results, beside "
        f"the numbers of a paper ({', '.join(RECIPES)})",
    )
    args = parser.parse_args(argv)
    if args.table == "":
        return report(read_rows(args.out / "results.jsonl"), args.out, published)
    args.model = args.model or ("cnn8" if args.recipe or args.table else "cnn4")
    args.epochs = args.epochs or EPOCHS[args.model]
    if args.table:
        rows = [row for path in sorted(RESULTS.glob("cifar10*/results.jsonl")) for row in read_rows(path)]
        rows += read_rows(args.out / "results.jsonl")
        return print(paper_table(args.table, rows, args.model, args.epochs))

    choose_grid(parser, args)
    find_device(parser, args.device)
    if args.precision == "fp16" and not (args.device or workers.device_of(0)).startswith("cuda"):
        parser.error("argument --precision: fp16 needs --device cuda")
    workers.check(parser, args)
    if not args.threads and (args.ray or args.workers > 1):  # more than its share would wait for each other
        args.threads = 1 if args.ray else max(1, (os.cpu_count() or 1) // args.workers)
    workers.train(prepare, args)
    return report(read_rows(args.out / "results.jsonl"), args.out, published)


def choose_grid(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Settle the entries and the noises; stop with a message where they cannot be read."""
    recipe = RECIPES.get(args.recipe)
    args.entries = [Entry(loss) for loss in args.losses or ["ce", "nce+rce"]]
    args.noise = args.noise or (list(recipe.noises) if recipe else ["symmetric:0.4"])
    if recipe:
        ids = {entry.loss.partition(":")[0] for entry in recipe.entries}
        if missing := set(args.losses or ()) - ids:
            parser.error(f"argument --losses: {', '.join(sorted(missing))}: not in the recipe {args.recipe}")
        args.entries = [entry for entry in recipe.entries if entry.loss.partition(":")[0] in (args.losses or ids)]
    check(parser, "--losses", [entry.loss for entry in args.entries], parse_loss)
    check(parser, "--noise", args.noise, functools.partial(parse_noise, human=HUMAN))


def find_device(parser: argparse.ArgumentParser, name: str | None) -> None:
    """Stop with a message where the device that is asked for is not there."""
    try:
        torch.zeros(1, device=torch.device(name or "cpu"))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"argument --device: {name}: {str(error).splitlines()[0]}")


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large tensors: a step of cnn8 on a CPU gets it anew otherwise, page by page."""
    m_trim_threshold, m_mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        for option in (m_trim_threshold, m_mmap_threshold):
            ctypes.CDLL(None).mallopt(option, 2**31 - 1)


def fastest_precision(device: torch.device) -> str:
    """Return bf16 for a CPU that has instructions for it, else fp32: without them bf16 takes twice as long."""
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # an older torch does not tell: False
    return "bf16" if device.type == "cpu" and has_bf16() else "fp32"


if __name__ == "__main__":
    main()
