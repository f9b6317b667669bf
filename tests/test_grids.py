"""Grids: the recipes of papers and their tables, several workers, and noise that needs more than a matrix."""

import argparse
import functools
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from test_benchmarks import BENCHMARKS, CPU, in_another_process, one_thread, rows_of  # noqa: F401  used by all tests
from test_instance_and_human import write as write_human

import cifar10  # isort: skip  test_benchmarks has put their folder on the path
import digits
import harness
import papers
import tables
import workers
from harness import HUMAN, parse_loss, parse_noise

from noisyloss import recommended
from noisyloss.noise import corrupt_by_instance

ENTRIES = list(dict.fromkeys(entry for recipe in papers.RECIPES.values() for entry in recipe.entries))
unix = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL, no file locks")


# Recipes --------------------------------------------------------------------------------------------------------------


def test_recipes_are_complete_and_can_be_read():
    for recipe in papers.RECIPES.values():
        assert len(set(recipe.entries)) == len(recipe.entries)
        assert all(parse_noise(noise, HUMAN) for noise in recipe.noises)
    for _, noises, rows in papers.READ:
        assert set(rows) <= set(papers.RECIPES["paper"].entries)
        assert set(noises) <= set(papers.RECIPES["paper"].noises)
        assert all(len(accuracies) == len(noises) for accuracies in rows.values())
    assert {source for source, *_ in papers.READ} == set(papers.SOURCES)
    for entry in ENTRIES:
        parse_loss(entry.loss)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.loss)
def test_what_the_papers_trained_is_what_the_ids_stand_for(entry):
    name, given = parse_loss(entry.loss)
    if entry.loss in ("nce+mae:alpha=1,beta=2", "nce+mae:alpha=1,beta=6", "logitclip:tau=1.5", "logitclip:tau=2.5"):
        return  # their MAE is twice ours; our own question; for high rates; for asymmetric noise
    asymmetric = recommended(name, "cifar10-asymmetric").hyperparameters if "m=1e3" in entry.loss else {}
    assert harness.hyperparameters(name, given) == harness.hyperparameters(name, asymmetric)


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """Return the runs that a command line of cifar10.py would train."""
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    targets = [i % 10 for i in range(40)]
    monkeypatch.setattr(cifar10, "load", lambda folder: (images, targets, images, targets))
    labels = {"clean_label": np.array(targets)}
    labels |= {name: np.array(targets) for name in ("aggre_label", "worse_label")}
    labels |= {f"random_label{i}": np.array(targets) for i in (1, 2, 3)}
    write_human(tmp_path / "CIFAR-10_human.pt", labels)

    def plan(arguments):
        got = []
        monkeypatch.setattr(workers, "train", lambda prepare, args: got.extend(prepare(args, 0)[0]))
        cifar10.main([*arguments, "--data", str(tmp_path), "--out", str(tmp_path), "--device", "cpu"])
        return got

    return plan


def test_a_recipe_is_a_grid_of_the_protocol(planned):
    runs = planned(["--recipe", "apl", "--seeds", "0", "1"])
    assert len(runs) == 12 * 9 * 2
    assert {(run["model"], run["epochs"]) for run in runs} == {("cnn8", 120)}
    assert all(run["recipe"].items() >= (papers.PROTOCOL | {"weight_decay": 1e-4, "l1": 0.0}).items() for run in runs)
    assert len({harness.identity(run) for run in runs}) == len(runs)
    assert len(planned(["--recipe", "human", "--losses", "ce", "gce"])) == 4


def test_penalties_belong_to_the_loss_and_can_be_overruled(planned):
    runs = planned(["--recipe", "l1", "--losses", "nce+rce"])
    assert [(run["recipe"]["weight_decay"], run["recipe"]["l1"]) for run in runs] == [(1e-4, 0.0), (0.0, 5e-5)]
    runs = planned(["--recipe", "l1", "--losses", "nce+rce", "--weight-decay", "0", "--l1", "1e-6", "--epochs", "3"])
    assert [(run["recipe"]["weight_decay"], run["recipe"]["l1"], run["epochs"]) for run in runs] == [(0.0, 1e-6, 3)]
    (run,) = planned(["--losses", "ce"])
    assert (run["recipe"]["weight_decay"], run["recipe"]["l1"], run["model"]) == (1e-4, 0.0, "cnn4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "apl", "--losses", "nope"], "nope: not in the recipe apl"),
        (["--recipe", "alp"], "argument --recipe: invalid choice: 'alp'"),
        (["--table", "alp"], "argument --table: invalid choice: 'alp'"),
        (["--noise", "human:worse"], "argument --noise: human:worse: expected clean, "),
        (["--noise", "instance"], "argument --noise: instance: expected clean, "),
        (["--address", "auto"], "argument --address: is of Ray; add --ray"),
        (["--workers", "0"], "argument --workers: expected int >= 1"),
    ],
)
def test_errors_of_the_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cifar10.main(arguments)
    assert message in capsys.readouterr().err


# Tables ---------------------------------------------------------------------------------------------------------------


def row(loss, noise, seed, accuracy, epoch=120, *, l1=0.0, model="cnn8", epochs=120, **other):
    name, given = parse_loss(loss)
    recipe = papers.PROTOCOL | {"weight_decay": 0.0 if l1 else 1e-4, "l1": l1, "precision": "fp32"} | other
    fields = {
        "dataset": "cifar10",
        "model": model,
        "loss": name,
        "hyperparameters": harness.hyperparameters(name, given),
    }
    fields |= {"noise": noise, "seed": seed, "epochs": epochs, "recipe": recipe, "epoch": epoch}
    return fields | {"test_accuracy": accuracy, "memorised": None if noise == "clean" else 5.0}


def lines_of(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_table_of_a_paper_by_hand():
    rows = [row("nce+rce", "symmetric:0.8", seed, x) for seed, x in ((0, 54.0), (1, 56.0))]
    rows += [row("nce+rce", "symmetric:0.8", 0, 57.5, epoch=90)]  # a better epoch
    rows += [row("nce+rce", "symmetric:0.8", 0, 60.0, l1=5e-5, precision="bf16")]
    rows += [row("nce+rce", "symmetric:0.8", 2, 1.0, epoch=60)]  # not finished
    rows += [row("nce+rce", "symmetric:0.8", 3, 1.0, lr=0.1), row("nce+rce:alpha=2", "symmetric:0.8", 3, 1.0)]
    rows += [row("nce+rce", "symmetric:0.8", 3, 1.0, model="cnn4", epochs=120)]
    rows += [row("nce+rce", "symmetric:0.8", 3, 1.0, l1=1e-6)]
    table = {line[1]: line for line in lines_of(tables.paper_table("l1", rows)) if line[0] == "symmetric:0.8"}
    head, published = ["symmetric:0.8", "nce+rce, L2"], "52.71 ± 1.90 [APL]; 55.28 ± 1.26 [EPS]"
    command = "`--model cnn8 --losses nce+rce:alpha=1,beta=1 --noise symmetric:0.8 --seeds 0 1`"
    measured = ["55.00 ± 1.41", "56.75 ± 1.06", "5.00 ± 0.00", "2"]
    assert table["nce+rce, L2"] == [*head, *measured, published, "54.99 [JAL]", command]
    command = "--noise symmetric:0.8 --weight-decay 0.0 --l1 5e-05 --seeds 0`"
    assert table["nce+rce, L1"][2:8] == ["60.00", "60.00", "5.00", "1", "-", "-"]
    assert table["nce+rce, L1"][8].endswith(command)
    assert table["anl-ce"][7] == "61.27 [ANL]; 62.28 [JAL]"
    assert ["nce+rce, L1", "alpha=1, beta=1", "0", "5e-05"] in lines_of(tables.paper_table("l1", rows))


def test_another_network_is_not_set_beside_published_numbers():
    rows = [row("ce", "symmetric:0.4", 0, 70.0, 10, model="cnn4", epochs=10)]
    text = tables.paper_table("paper", rows, "cnn4", 10)
    (line,) = [line for line in lines_of(text) if line[0] == "symmetric:0.4"]
    command = "`--model cnn4 --losses ce --noise symmetric:0.4 --epochs 10 --seeds 0`"
    assert line == ["symmetric:0.4", "ce", "70.00", "70.00", "5.00", "1", "-", "-", command]
    assert "[APL]" not in text
    assert "has been measured yet" in tables.paper_table("apl", [], "cnn4", 10)


def test_rows_without_an_l1_field_were_trained_without():
    old = row("ce", "clean", 0, 90.0)
    del old["recipe"]["l1"]
    assert ["clean", "ce", "90.00", "90.00", "-", "1"] in [
        line[:6] for line in lines_of(tables.paper_table("apl", [old]))
    ]


def test_the_command_beside_a_row_makes_its_run(planned):
    rows = [row("nce+rce", "symmetric:0.8", 0, 50.0), row("nce+rce", "symmetric:0.8", 1, 50.0, l1=5e-5)]
    rows += [row("gce", "sequential:0.4", 0, 50.0)]
    for one, name in zip(rows, ("l1", "l1", "apl"), strict=True):
        label = "nce+rce, L1" if one["recipe"]["l1"] else "nce+rce, L2" if name == "l1" else "gce"
        (line,) = [x for x in lines_of(tables.paper_table(name, [one])) if x[:2] == [one["noise"], label]]
        (run,) = planned([*shlex.split(line[-1].strip("`")), "--precision", "fp32"])
        assert harness.identity(run) == harness.identity(one)


def test_the_command_line_prints_the_table_of_the_committed_rows(capsys, tmp_path):
    cifar10.main(["--table", "apl", "--model", "cnn4", "--out", str(tmp_path)])
    lines = lines_of(capsys.readouterr().out)
    assert [line[2] for line in lines if line[:2] == ["symmetric:0.4", "nce+rce"]] == ["25.31"]
    cifar10.main(["--table", "apl", "--out", str(tmp_path)])
    assert "60.28 ± 0.27 [APL]" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_accuracy_over_the_noise_rate_is_plotted_from_three_rates_on(tmp_path, capsys):
    rows = [row(loss, noise, 0, 50.0) for loss in ("ce", "mae") for noise in ("clean", "symmetric:0.2", "pairflip:0.1")]
    tables.report(rows, tmp_path)
    assert sorted(tmp_path.glob("*.png")) == [tmp_path / f"cifar10-cnn8-120-{n}.png" for n in
                                              ("clean", "pairflip-0.1", "symmetric-0.2")]  # fmt: skip
    tables.report([*rows, row("ce", "symmetric:0.8", 0, 20.0), row("ce", "human:worst", 0, 20.0)], tmp_path)
    assert (tmp_path / "cifar10-cnn8-120-symmetric.png").exists()
    assert len(list(tmp_path.glob("*.png"))) == 6


# Noise ----------------------------------------------------------------------------------------------------------------


@functools.cache
def tiny_images():
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8), (np.arange(200) % 10).tolist()


def human_file(path, targets, rate=0.4):
    noisy = np.where(np.random.default_rng(1).random(len(targets)) < rate, 0, targets)
    names = ["aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"]
    return write_human(path, {"clean_label": np.array(targets)} | dict.fromkeys(names, noisy)), noisy


@pytest.fixture
def tiny(monkeypatch):
    images, targets = tiny_images()
    monkeypatch.setattr(cifar10, "load", lambda folder: (images, targets, images[:50], targets[:50]))


def test_instance_and_human_noise_are_trained_on(tiny, tmp_path, capsys):
    _, targets = tiny_images()
    human_file(tmp_path / "CIFAR-10_human.pt", targets)
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--losses", "ce", "--epochs", "1"]
    arguments += ["--noise", "instance:0.4", "human:worst", "--threads", "1"]
    cifar10.main(arguments)
    rows = rows_of(tmp_path / "out")
    assert [row["noise"] for row in rows] == ["instance:0.4", "human:worst"]
    assert all(row["memorised"] is not None for row in rows)
    printed = capsys.readouterr().out
    assert "| instance:0.4 |" in printed
    assert "| human:worst  |" in printed


def test_noisy_labels_of_every_kind(tmp_path):
    images, targets = tiny_images()
    path, noisy = human_file(tmp_path / "human.pt", targets)
    task = cifar10.cifar10(images, targets, images, targets, CPU, cifar10.load_human(path, targets))
    assert set(task.human) == set(HUMAN)
    for seed in (0, 1):
        assert harness.noisy_labels(task, "human:worst", seed).tolist() == noisy.tolist()
        expected = corrupt_by_instance(targets, images, 0.4, num_classes=10, generator=seed)
        assert harness.noisy_labels(task, "instance:0.4", seed).tolist() == expected
    assert digits.digits().features.shape == (1257, 64)


def test_human_labels_that_are_not_there_or_in_another_order_stop_everything(tiny, tmp_path):
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--noise", "human:worst"]
    with pytest.raises(SystemExit, match=r"Put CIFAR-10_human.pt from https://.*cifar-10-100n .*--human FILE"):
        cifar10.main(arguments)
    path, _ = human_file(tmp_path / "mine.pt", tiny_images()[1][::-1])
    with pytest.raises(SystemExit, match=r"mine.pt: the images are in another order"):
        cifar10.main([*arguments, "--human", str(path)])
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        digits.main(["--noise", "human:worst"])


# Determinism ----------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_labels_weights_and_curve(tiny, tmp_path):
    arguments = ["--losses", "ce", "mae", "--noise", "symmetric:0.4", "instance:0.4", "--epochs", "2", "--threads", "1"]
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))  # whatever ran before
        cifar10.main([*arguments, "--seeds", "3", "--out", str(tmp_path / name)])
    one, two = ([{**row, "command": ""} for row in rows_of(tmp_path / name)] for name in ("one", "two"))
    assert one == two
    cifar10.main([*arguments, "--seeds", "4", "--out", str(tmp_path / "three")])
    assert rows_of(tmp_path / "three")[0]["train_loss"] != one[0]["train_loss"]


@pytest.mark.parametrize(("model", "expected"), [("cnn4", 1937.635), ("cnn4bn", 50125.986), ("cnn8", 780035.825)])
def test_pinned_initial_weights(model, expected):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        weights = torch.cat([p.detach().double().flatten() for p in cifar10.MODELS[model]().parameters()])
    assert float((weights * torch.arange(1, len(weights) + 1).double().sqrt()).sum()) == pytest.approx(
        expected, rel=1e-4
    )


# Workers --------------------------------------------------------------------------------------------------------------


def prepare(args, worker):
    """Prepare the digits; every worker waits at its first row for the other, and one of them is killed in mid-run."""
    runs, setup = digits.prepare(args, worker)
    begun = [args.out / f"begun-{i}" for i in range(2)]
    begun[worker].write_text(str(os.getpid()))
    append, rows = harness.append_row, itertools.count(1)

    def append_or_die(path, row):
        while not all(path.exists() for path in begun):
            time.sleep(0.01)
        append(path, row)
        if worker == args.dies and next(rows) == 3 and not (args.out / "died").exists():
            (args.out / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    harness.append_row = append_or_die
    return runs, setup


def train(out, dies=None, **options):
    """Train on two workers in a process of its own; return how that ended."""
    settings = {"losses": ["ce", "gce", "nce", "mae"], "noise": ["symmetric:0.4"], "seeds": [0], "epochs": 5}
    settings |= {"workers": 2, "ray": False, "address": None, "dies": dies, "out": out}
    process = in_another_process(_train, argparse.Namespace(**settings | options))
    process.join()
    return process.exitcode


def _train(args):
    with (args.out / "errors").open("a") as sys.stderr:
        workers.train(prepare, args)


def grid_rows(out):
    rows = sorted(rows_of(out), key=lambda row: (row["loss"], row["epoch"]))
    assert list((out / "checkpoints").iterdir()) == []
    return [{**row, "command": ""} for row in rows]


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    arguments = ["--losses", "ce", "gce", "nce", "mae", "--noise", "symmetric:0.4", "--seeds", "0", "--epochs", "5"]
    digits.main([*arguments, "--workers", "1", "--out", str(out)])
    assert len(grid_rows(out)) == 4 * 5
    return grid_rows(out)


@unix
def test_two_workers_give_the_rows_of_one(tmp_path, one_worker):
    assert train(tmp_path) == 0
    assert grid_rows(tmp_path) == one_worker
    assert (tmp_path / "errors").read_text() == ""


@unix
def test_a_killed_worker_loses_nothing(tmp_path, one_worker):
    assert train(tmp_path, dies=1) == 0
    assert (tmp_path / "died").exists()
    assert "a worker ended with exit code -9; the others did its runs" in (tmp_path / "errors").read_text()
    assert grid_rows(tmp_path) == one_worker


@unix
def test_killed_as_a_whole_and_started_again(tmp_path, one_worker):
    assert train(tmp_path, dies=0) == -signal.SIGKILL
    helper = int((tmp_path / "begun-1").read_text())
    for _ in range(3000):  # it follows
        try:
            os.kill(helper, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the helper lives on")
    assert 0 < len(rows_of(tmp_path)) < len(one_worker)
    assert train(tmp_path) == 0
    assert grid_rows(tmp_path) == one_worker


def test_gpus_are_taken_in_turn(monkeypatch):
    for count, expected in ((0, ["cpu"] * 3), (1, ["cuda"] * 3), (2, ["cuda:0", "cuda:1", "cuda:0"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert [workers.device_of(worker) for worker in range(3)] == expected


@unix
def test_ray_gives_the_rows_of_one_worker_though_a_worker_is_killed(tmp_path, one_worker):
    pytest.importorskip("ray")
    assert train(tmp_path, dies=1, ray=True) == 0, (tmp_path / "errors").read_text()
    assert (tmp_path / "died").exists()
    assert grid_rows(tmp_path) == one_worker


@unix
def test_ray_from_the_command_line(tmp_path):
    pytest.importorskip("ray")
    path = os.pathsep.join(filter(None, [str(BENCHMARKS.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(BENCHMARKS / "digits.py"), "--ray", "--workers", "1", "--losses", "ce"]
    command += ["--noise", "clean", "--seeds", "0", "--epochs", "2", "--out", str(tmp_path)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True, timeout=300)
    assert [row["epoch"] for row in rows_of(tmp_path)] == [1, 2]
