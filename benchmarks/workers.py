"""A grid on several processes: of this machine, or of a Ray cluster.

Every worker goes through the whole grid and takes what is neither done nor locked by another, so that the files are
those of one process. A run whose worker dies is free again, and goes on from its checkpoint in the hands of the next.
The output folder must be one that all workers see, with locks: on a cluster, a shared file system.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, Setup, at_least, can_lock, train_all, unfinished

Prepare = Callable[[argparse.Namespace, int], tuple[list[Row], Setup]]  # the runs, for the worker with this number


def add_options(parser: argparse.ArgumentParser, default: int = 1) -> None:
    """Add the options that say who trains."""
    add = parser.add_argument
    add("--workers", metavar="N", type=at_least(1), help=f"processes, in turn on each GPU (default: {default})")
    add("--ray", action="store_true", help="workers of Ray, by default one for each GPU, or else each CPU")
    add("--address", help="of a Ray cluster (default: one of this machine's own)")
    parser.set_defaults(default_workers=default)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop with a message where these workers cannot be had; settle their number."""
    if args.address and not args.ray:
        parser.error("argument --address: is of Ray; add --ray")
    if args.ray:
        try:
            import ray  # noqa: F401
        except ImportError:
            parser.error("argument --ray: Ray is not installed: pip install ray")
    elif args.workers is None:
        args.workers = args.default_workers if can_lock() else 1
    if not can_lock() and (args.ray or args.workers > 1):
        parser.error("argument --workers: this system has no file locks, so one process it must be")


def train(prepare: Prepare, args: argparse.Namespace) -> None:
    """Train what is not done yet; `prepare(args, worker)` makes the runs and the setup in each process."""
    if args.ray:
        return _train_on_ray(prepare, args)
    runs, setup = prepare(args, 0)
    context = multiprocessing.get_context("spawn")
    helpers = [
        context.Process(target=_help, args=(prepare, args, worker), daemon=True)
        for worker in range(1, min(args.workers, len(unfinished(runs, setup))))
    ]
    for helper in helpers:
        helper.start()
    train_all(runs, setup)  # to the end, what dying helpers leave included
    for helper in helpers:
        helper.join()
        if helper.exitcode:
            print(f"a worker ended with exit code {helper.exitcode}; the others did its runs", file=sys.stderr)
    return None


def device_of(worker: int) -> str:
    """Return the device of a worker: the GPUs in turn, or the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{worker % count}" if count > 1 else "cuda" if count else "cpu"


def _help(prepare: Prepare, args: argparse.Namespace, worker: int) -> None:
    """Work on the grid of the parent process for as long as that lives."""

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    train_all(*prepare(args, worker))


def _train_on_ray(prepare: Prepare, args: argparse.Namespace) -> None:
    import ray

    # The scripts are no package: every worker finds them where this process does.
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, map(os.path.abspath, sys.path))])
    local = {} if args.address else {"num_cpus": args.workers, "include_dashboard": False}
    ray.init(address=args.address or "local", runtime_env={"env_vars": {"PYTHONPATH": path}}, **local)
    try:
        has = ray.cluster_resources()
        gpus = has.get("GPU", 0.0)
        count = args.workers or int(gpus or has["CPU"])
        share = {"num_gpus": min(1.0, gpus / count)} if gpus else {}
        worker = ray.remote(max_retries=10, num_cpus=1, **share)(_work)
        module = inspect.getmodulename(inspect.getfile(prepare))
        ray.get([worker.remote(module, prepare.__name__, args, number) for number in range(count)])
    finally:
        ray.shutdown()


def _work(module: str, prepare: str, args: argparse.Namespace, worker: int) -> None:
    train_all(*getattr(importlib.import_module(module), prepare)(args, worker))
