"""The benchmarks: what they read, what they write, and that a kill at any moment changes nothing."""

import functools
import json
import multiprocessing
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

pytest.importorskip("sklearn")
pytest.importorskip("torchvision")
pytest.importorskip("matplotlib")

import cifar10  # noqa: E402
import digits  # noqa: E402
import harness  # noqa: E402
import papers  # noqa: E402
import swap  # noqa: E402
import tables  # noqa: E402
from harness import parse_loss, parse_noise  # noqa: E402

from noisyloss import APLLoss, create_loss  # noqa: E402
from noisyloss.noise import CIFAR10_MAPPING  # noqa: E402

CPU = torch.device("cpu")
FIELDS = [*harness.IDENTITY, "epoch", "train_loss", "test_accuracy", "memorised", "seconds"]
FIELDS += ["device", "torch", "commit", "command"]
RECIPE = {
    "optimizer": "sgd",
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "l1": 1e-5,
    "batch_size": 40,
    "clip": 5.0,
    "precision": "fp32",
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def tiny_task():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (150, 32, 32, 3), dtype=torch.uint8, generator=draw).numpy()
    targets = (torch.arange(150) % 10).tolist()
    return cifar10.cifar10(images[:100], targets[:100], images[100:], targets[100:], CPU)


def tiny_runs(losses=("ce", "nce+rce"), epochs=4, seeds=(0,), **recipe):
    protocol = {"dataset": "cifar10", "model": "cnn4bn", "epochs": epochs, "recipe": RECIPE | recipe}
    return harness.make_runs(losses, ["symmetric:0.4"], seeds, lambda *spec: f"run {spec}", CPU, **protocol)


def train_tiny(out, runs=None):
    harness.train_all(runs or tiny_runs(), harness.Setup(tiny_task(), cifar10.MODELS, out, CPU, memorised_every=3))


def rows_of(out):
    """Every row, less what may differ between two starts of the same run."""
    text = (out / "results.jsonl").read_text()
    assert text.endswith("\n")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "commit")} for row in rows]


# Specs


def test_a_loss_spec_is_an_id_and_hyperparameters():
    assert parse_loss("ce") == ("ce", {})
    assert parse_loss("nce+rce:alpha=10,beta=0.1") == ("nce+rce", {"alpha": 10, "beta": 0.1})
    assert parse_loss("focal:detach_modulator=True") == ("focal", {"detach_modulator": True})
    assert harness.hyperparameters("gce", {"q": 0.5}) == {"q": 0.5}
    assert harness.hyperparameters("ce", {"label_smoothing": 0.1}) == {"label_smoothing": 0.1}
    assert harness.hyperparameters("ce", {"label_smoothing": 0.0}) == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cee", "cee"),
        ("gce:q", "ID:name=value"),
        ("gce:", "ID:name=value"),
        ("gce:q=0.5,q=0.6", "twice"),
        ("gce:q=-1", "q"),
        ("gce:q=much", "q"),
        ("gce:gamma=1", "gamma"),
        ("ce:reduction=sum", "reduction cannot be set"),
    ],
)
def test_a_bad_loss_spec_is_refused(spec, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        parse_loss(spec)


@pytest.mark.parametrize(
    ("spec", "share"),
    # What changes of all labels; sequential: (5 * 0.4 - 0.4 ** 2) / 10, as some cats turn into dogs and back.
    [("clean", 0), ("symmetric:0.4", 0.4), ("asymmetric:0.4", 0.2), ("sequential:0.4", 0.184), ("pairflip:0.3", 0.3)],
)
def test_noise_changes_the_share_of_labels_that_it_says(spec, share):
    clean = torch.arange(10).repeat(500)
    task = harness.Task("", 10, CIFAR10_MAPPING, clean, clean, None, None, None)
    noisy = harness.noisy_labels(task, spec, seed=0)
    assert (noisy != clean).sum() == round(share * len(clean))
    assert torch.equal(noisy, harness.noisy_labels(task, spec, seed=0))
    assert spec == "clean" or not torch.equal(noisy, harness.noisy_labels(task, spec, seed=1))


@pytest.mark.parametrize(
    "spec", ["symetric:0.4", "symmetric", "symmetric:", "symmetric:1.1", "symmetric:x", "clean:0.1"]
)
def test_a_bad_noise_spec_is_refused(spec):
    with pytest.raises(ValueError, match=re.escape(repr(spec))):
        parse_noise(spec)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--losses", "ce", "nope"], "argument --losses: nope: id: expected one of"),
        (["--losses", "gce:q=-1"], "argument --losses: gce:q=-1: q"),
        (["--noise", "clean", "symmetric:2"], "argument --noise: symmetric:2: expected clean"),
        (["--seeds", "-1"], "argument --seeds: expected int >= 0"),
        (["--epochs", "0"], "argument --epochs: expected int >= 1"),
    ],
)
@pytest.mark.parametrize("script", [digits, cifar10], ids=lambda script: script.__name__)
def test_the_whole_command_line_is_checked_before_any_training(script, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([*arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_data_and_no_network_say_what_to_do(monkeypatch, tmp_path):
    def no_data(folder, train, download=False):
        raise OSError("no route to host") if download else RuntimeError("Dataset not found")

    monkeypatch.setattr(cifar10, "CIFAR10", no_data)
    with pytest.raises(SystemExit, match=r"no route to host.*Put cifar-10-python.tar.gz .* or name its folder"):
        cifar10.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("arguments", [["--device", "quantum"], ["--device", "cpu", "--precision", "fp16"]])
def test_a_device_or_precision_that_is_not_there_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        cifar10.main(arguments)
    assert f"argument {arguments[-2]}" in capsys.readouterr().err


# Runs and rows


def test_a_run_is_another_one_if_any_part_of_its_identity_differs():
    def key(losses=("nce+rce",), **changes):
        return harness.identity(tiny_runs(losses)[0] | changes)

    assert key() == key(command="other", commit="other", device="other") == key(["nce+rce:alpha=1,beta=1"])
    changes = [{name: "other"} for name in harness.IDENTITY] + [{"recipe": RECIPE | {"lr": 0.1}}]
    assert len({key(), key(["nce+rce:alpha=2"]), *(key(**change) for change in changes)}) == len(changes) + 2
    assert len(tiny_runs(["ce", "nce+rce", "ce", "nce+rce:alpha=1.0"])) == 2


@pytest.mark.parametrize("torn", ['{"epoch": 3, "los', "{", '{"epoch": 3}\n\0\0\0', "\0", "[1]\n"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "results.jsonl"
    whole = '{"epoch": 1}\n{"epoch": 2}\n'
    path.write_text(whole + torn)
    expected = whole + (torn[:13] if torn.startswith('{"epoch": 3}\n') else "")
    assert len(harness.read_rows(path)) == expected.count("\n")
    assert path.read_text() == expected

    path.write_text(whole + torn)
    harness.append_row(path, '{"epoch": 4}')  # by a process that started before the kill of another
    assert path.read_text() == expected + '{"epoch": 4}\n'


def test_a_whole_last_line_gets_its_newline(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2}')
    assert harness.read_rows(path) == [{"epoch": 1}, {"epoch": 2}]
    harness.append_row(path, '{"epoch": 3}')
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n'


def append_many(path, writer):
    for epoch in range(200):
        harness.append_row(path, json.dumps({"writer": writer, "epoch": epoch, "padding": "x" * 2000}))


def test_rows_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "results.jsonl"
    writers = [in_another_process(append_many, path, writer) for writer in range(3)]
    for writer in writers:
        writer.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((row["writer"], row["epoch"]) for row in rows) == [(w, e) for w in range(3) for e in range(200)]


# Kills


def in_another_process(function, *arguments):
    """Start a function in a process forked from one that has all modules but has never computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # torch imports the latter at the first step
    with pytest.MonkeyPatch.context() as patch:  # the server does not take over our sys.path in all Pythons
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
        process = context.Process(target=function, args=arguments)
        process.start()
    return process


def train_and_die(out, moment, loss, epoch):
    """Train, and be killed at this moment of this epoch."""
    torch.set_num_threads(1)
    save, append = harness._save, harness.append_row

    def here(row):
        row = json.loads(row)
        return row["loss"] == loss and row["epoch"] == epoch

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_save(path, state):
        if not here(state["rows"][-1]):
            return save(path, state)
        if moment == "before the checkpoint":
            die()
        if moment == "in the checkpoint":
            path.with_suffix(".tmp").write_bytes(b"PK half of a checkpoint")
            die()
        save(path, state)
        if moment == "between checkpoint and row":
            die()
        return None

    def dying_append(path, row):
        if not here(row):
            return append(path, row)
        if moment == "in the row":
            with path.open("ab") as file:
                file.write(row[: len(row) // 2].encode())
            die()
        append(path, row)
        if moment == "after the row":
            die()
        return None

    harness._save, harness.append_row = dying_save, dying_append
    train_tiny(out)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("undisturbed")
    train_tiny(out)
    torch.set_num_threads(threads)
    rows = rows_of(out)
    assert len({row["train_loss"] for row in rows}) == len(rows) == 8
    assert [row["memorised"] is None for row in rows] == [True, True, False, False] * 2
    return rows


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    ("moment", "loss", "epoch"),
    [
        ("before the checkpoint", "nce+rce", 3),
        ("in the checkpoint", "nce+rce", 3),
        ("between checkpoint and row", "nce+rce", 3),
        ("in the row", "nce+rce", 3),
        ("after the row", "nce+rce", 3),
        ("in the checkpoint", "ce", 1),
        ("between checkpoint and row", "nce+rce", 4),  # the last epoch
        ("after the row", "nce+rce", 4),
    ],
)
def test_killed_and_started_again_gives_the_rows_of_an_undisturbed_run(tmp_path, undisturbed, moment, loss, epoch):
    process = in_another_process(train_and_die, tmp_path, moment, loss, epoch)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = (tmp_path / "results.jsonl").read_bytes() if (tmp_path / "results.jsonl").exists() else b""
    done = epoch + (4 if loss == "nce+rce" else 0) - (moment != "after the row")
    assert left.count(b"\n") == done
    train_tiny(tmp_path)
    assert rows_of(tmp_path) == undisturbed
    assert list((tmp_path / "checkpoints").iterdir()) == []
    train_tiny(tmp_path)
    assert rows_of(tmp_path) == undisturbed
    assert [path.name for path in tmp_path.glob("**/*.jsonl")] == ["results.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("damage", ["lost", "damaged", "rows lost"])
def test_a_lost_or_damaged_file_costs_time_but_no_row(tmp_path, undisturbed, damage, capsys):
    in_another_process(train_and_die, tmp_path, "after the row", "nce+rce", 3).join()
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.pt")
    if damage == "lost":
        checkpoint.unlink()
    elif damage == "damaged":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    else:
        (tmp_path / "results.jsonl").write_text("")
    train_tiny(tmp_path)
    rows = rows_of(tmp_path)
    assert sorted(rows, key=lambda row: (row["loss"], row["epoch"])) == undisturbed
    assert ("cannot be read" in capsys.readouterr().err) == (damage == "damaged")


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path, undisturbed):
    others = [in_another_process(train_and_die, tmp_path, "never", "ce", 0) for _ in range(2)]
    train_tiny(tmp_path)
    assert sorted(rows_of(tmp_path), key=lambda row: (row["loss"], row["epoch"])) == undisturbed
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert len(rows_of(tmp_path)) == len(undisturbed)


def test_another_recipe_or_seed_is_another_run(tmp_path, undisturbed):
    train_tiny(tmp_path, tiny_runs(["ce"], epochs=2))
    train_tiny(tmp_path, tiny_runs(["ce"], epochs=2, precision="bf16") + tiny_runs(["ce"], epochs=2, seeds=[1]))
    rows = rows_of(tmp_path)
    assert len(rows) == 6
    assert len({row["train_loss"] for row in rows}) == 6
    assert rows[0]["train_loss"] == undisturbed[0]["train_loss"] != rows[2]["train_loss"]


# The networks and their inputs


def test_cnn8_is_the_network_of_the_papers():
    model = cifar10.cnn8()
    assert sum(p.numel() for p in model.parameters()) == 1_639_794
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    weights = [layer.weight for layer in model if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(weights) == 8
    for weight in weights:  # Kaiming- and Xavier-uniform fill their range
        limit = (6 / weight[0].numel()) ** 0.5 if weight.dim() == 4 else (6 / sum(weight.shape)) ** 0.5
        assert 0.9 * limit < weight.abs().max() <= limit


def test_pooling_before_the_relu_is_the_network_as_it_is_written_down():
    model = cifar10.cnn4()
    conv1, conv2, fc1, fc2 = (layer for layer in model if isinstance(layer, (nn.Conv2d, nn.Linear)))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    hidden = F.max_pool2d(F.relu(conv2(F.max_pool2d(F.relu(conv1(x)), 2))), 2)
    written = fc2(F.relu(fc1(hidden.flatten(1))))
    assert torch.equal(model(x), written)
    ours = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    theirs = torch.autograd.grad(written.square().sum(), list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("model", cifar10.MODELS)
def test_every_model_takes_images_and_gives_ten_logits(model):
    assert cifar10.MODELS[model]()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_crop_and_flip_equal_a_plain_reference():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=draw).numpy()
    task = cifar10.cifar10(images, [0] * 40, images, [0] * 40, CPU)
    order = torch.randperm(40, generator=draw).split(16)
    got = torch.cat(list(task.epoch_inputs(order, torch.Generator().manual_seed(1))))

    draw = torch.Generator().manual_seed(1)
    top, left = torch.randint(9, (2, 40), generator=draw).tolist()
    mirrored = torch.randint(2, (40,), generator=draw).tolist()
    assert {min(top), max(top), min(left), max(left)} == {0, 8}  # every side of the padding is seen
    assert set(mirrored) == {0, 1}
    expected = torch.empty(40, 3, 32, 32)
    for place, i in enumerate(torch.cat(order).tolist()):
        for y in range(32):
            for x in range(32):
                row, column = y + top[i] - 4, (31 - x if mirrored[i] else x) + left[i] - 4
                inside = 0 <= row < 32 and 0 <= column < 32
                pixel = images[i, row, column].tolist() if inside else [0, 0, 0]
                for c in range(3):
                    expected[place, c, y, x] = (pixel[c] / 255 - cifar10.MEAN[c]) / cifar10.STD[c]
    torch.testing.assert_close(got, expected)
    plain = (torch.from_numpy(images).float().permute(0, 3, 1, 2) / 255 - torch.tensor(cifar10.MEAN).view(3, 1, 1)) / (
        torch.tensor(cifar10.STD).view(3, 1, 1)
    )
    torch.testing.assert_close(task.train_inputs(torch.arange(40)), plain)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_not_fetched_again():
    resource = pytest.importorskip("resource")

    def page_faults_of_a_large_tensor():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(40 << 20, dtype=torch.uint8)  # 10,240 pages, in a block that glibc gives back at once by itself
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    cifar10.keep_freed_memory()
    assert [page_faults_of_a_large_tensor() for _ in range(6)][-1] < 1000  # first it gets the places to put them in


def one_step(l1, clip=None):
    """Return the parameters before and after a step of SGD at 1, and the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    recipe = RECIPE | {"l1": l1, "clip": clip}
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    loss = harness._train_epoch(model, nn.CrossEntropyLoss(), optimizer, scaler, [x], [y], recipe)
    return before, [p.detach() for p in model.parameters()], loss


def test_the_l1_penalty_adds_its_gradient_for_every_parameter_and_no_loss():
    before, plain, loss = one_step(0.0)
    _, penalised, penalised_loss = one_step(0.01)
    assert loss == penalised_loss
    assert len(before) == 6  # weights, biases, batch norm
    for start, a, b in zip(before, plain, penalised, strict=True):
        torch.testing.assert_close(b, a - 0.01 * start.sign())


def test_the_l1_penalty_is_clipped_along_with_the_loss():
    before, free, _ = one_step(0.7)
    _, clipped, _ = one_step(0.7, clip=0.5)
    norm = torch.cat([(a - b).flatten() for a, b in zip(before, free, strict=True)]).norm()
    assert norm > 0.5
    for start, a, b in zip(before, free, clipped, strict=True):
        torch.testing.assert_close(b - start, (a - start) * 0.5 / norm)


# The scripts


def test_digits_writes_rows_a_table_and_plots(tmp_path, capsys):
    arguments = ["--losses", "ce", "nce+rce:alpha=2", "--noise", "clean", "asymmetric:0.4"]
    digits.main([*arguments, "--seeds", "0", "3", "--epochs", "2", "--workers", "1", "--out", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        assert list(row) == FIELDS
        assert list(row["recipe"]) == list(RECIPE)
        assert (row["memorised"] is None) == (row["noise"] == "clean")
        assert 0 < row["test_accuracy"] <= 100
        assert row["seconds"] > 0
        words = shlex.split(row["command"])
        assert words[:2] == ["python", "benchmarks/digits.py"]
        assert words[words.index("--noise") + 1] == row["noise"]
        assert words[words.index("--seeds") + 1] == str(row["seed"])
        assert words[words.index("--losses") + 1] == {"ce": "ce", "nce+rce": "nce+rce:alpha=2"}[row["loss"]]
    assert rows[-1]["hyperparameters"].items() >= {"alpha": 2.0, "beta": 1.0}.items()
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in pictures] == ["digits-mlp-2-asymmetric-0.4.png", "digits-mlp-2-clean.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    printed = capsys.readouterr().out
    last = [
        row["test_accuracy"] for row in rows if row["epoch"] == 2 and row["noise"] == "clean" and row["loss"] == "ce"
    ]
    assert re.search(rf"\| clean +\| ce +\| {sum(last) / 2:.2f} ± ", printed)

    # The command beside a row re-runs it.
    words = shlex.split(rows[-1]["command"])[2:]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    digits.main([*words, "--workers", "1"])
    again = rows_of(tmp_path / "again")
    assert [row["test_accuracy"] for row in again] == [row["test_accuracy"] for row in rows[-2:]]
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in rows[-2:]]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_digits_killed_from_outside_goes_on(tmp_path):
    arguments = ["--losses", "ce", "gce", "nce", "--noise", "symmetric:0.4", "--seeds", "0", "--epochs", "40"]
    digits.main([*arguments, "--workers", "1", "--out", str(tmp_path / "undisturbed")])
    out = tmp_path / "killed"
    path = os.pathsep.join(filter(None, [str(BENCHMARKS.parent), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, BENCHMARKS / "digits.py", *arguments, "--workers", "2", "--out", out],
        env=os.environ | {"PYTHONPATH": path},
    )
    while not (out / "results.jsonl").exists() or (out / "results.jsonl").read_bytes().count(b"\n") < 15:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    digits.main([*arguments, "--workers", "1", "--out", str(out)])
    killed, undisturbed = rows_of(out), rows_of(tmp_path / "undisturbed")
    for row in killed + undisturbed:
        del row["command"]
    assert sorted(killed, key=lambda row: (row["loss"], row["epoch"])) == undisturbed


def test_the_table_has_means_over_seeds_and_published_numbers(tmp_path, capsys):
    recipe = papers.PROTOCOL | {"weight_decay": 1e-4, "l1": 0.0, "precision": "fp32"}
    protocol = {"dataset": "cifar10", "model": "cnn8", "epochs": 120, "recipe": recipe}
    runs = harness.make_runs(["ce", "nce+rce", "nce+rce:alpha=3"], ["symmetric:0.4"], [0, 1], print, CPU, **protocol)
    for i, run in enumerate(runs):
        for epoch, accuracy in ((1, 60 + i), (120, 50 + i)) if i < 5 else ((1, 60.0),):
            row = {key: run[key] for key in harness.IDENTITY} | {"epoch": epoch, "test_accuracy": accuracy}
            harness.append_row(tmp_path / "results.jsonl", json.dumps(row | {"memorised": None if epoch == 1 else 7.5}))
    cifar10.main(["--table", "--out", str(tmp_path)])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    cells = {line[1]: line for line in lines if len(line) == 7}
    assert cells["ce"][2:6] == ["51.50 ± 2.12", "61.50 ± 2.12", "7.50 ± 0.00", "2"]
    assert cells["ce"][6] == "60.28 ± 0.27 [APL]; 58.46 ± 0.21 [EPS]; unverified: 58.05 [JAL]"
    assert cells["nce+rce (alpha=1.0)"][6].startswith("86.02 ± 0.09 [APL]")
    assert cells["nce+rce (alpha=3.0)"][2:] == ["52.00", "62.00", "7.50", "1", "-"]  # seed 1 is not finished
    assert (tmp_path / "cifar10-cnn8-120-symmetric-0.4.png").exists()


# Swapping a loss in


def test_the_default_of_the_swap_is_the_drop_in():
    name, given = parse_loss(harness.DROP_IN)
    assert repr(create_loss(name, **given)) == repr(APLLoss())


def test_swap_trains_each_setting_once(tmp_path, capsys):
    arguments = ["--tasks", "digits", "clusters10", "--models", "mlp-plain", "--optimizers", "adamw:0.001", "--epochs"]
    arguments += ["2", "--noise", "symmetric:0.4", "--losses", "mae", "--out", str(tmp_path)]
    swap.main(arguments)
    rows = harness.read_rows(tmp_path / "results.jsonl")
    trained = [(row["dataset"], row["loss"], row["epoch"]) for row in rows]
    assert trained == [(data, loss, e) for data in ("digits", "clusters10") for loss in ("ce", "mae") for e in (1, 2)]
    assert {row["recipe"]["optimizer"] for row in rows} == {"adamw"}
    table = capsys.readouterr().out
    swap.main([*arguments, "--table"])
    assert capsys.readouterr().out.strip() in table
    swap.main(shlex.split(rows[-1]["command"])[2:])
    assert harness.read_rows(tmp_path / "results.jsonl") == rows


def test_the_verdict_of_the_swap_by_hand():
    def row(loss, noise, epochs, accuracy, memorised=None, seed=0):
        recipe = {"optimizer": "sgd", "lr": 0.1, "precision": "fp32"}
        fields = {"dataset": "digits", "model": "mlp", "recipe": recipe, "hyperparameters": {}, "seed": seed}
        fields |= {"loss": loss, "noise": noise, "epochs": epochs, "epoch": epochs}
        return fields | {"test_accuracy": accuracy, "memorised": memorised}

    rows = [row("ce", "clean", 100, 98.0), row("mae", "clean", 100, 97.5)]
    rows += [row("ce", "symmetric:0.4", 5, 90.0, 2.0), row("mae", "symmetric:0.4", 5, 19.0, 1.0)]
    rows += [row("ce", "symmetric:0.4", 100, x, 99.0, seed) for seed, x in enumerate((68.0, 72.0))]
    rows += [row("mae", "symmetric:0.4", 100, x, 5.0, seed) for seed, x in enumerate((89.0, 91.0))]
    rows += [row("ce", "symmetric:0.8", 100, 30.0, 99.0), row("mae", "symmetric:0.8", 100, 10.0, 9.0)]
    rows += [row("nce", "clean", 100, 99.0), row("nce", "clean", 90, 1.0)]  # the last has no cross entropy beside it
    verdicts = [[cell.strip() for cell in line.split("|")[1:-1]] for line in swap.report(rows).splitlines()]
    assert ["digits", "mlp", "sgd:0.1", "100", "fp32", "clean", "-", "98.00", "97.50", "99.00"] in verdicts
    assert ["mae", "+0.5", "+71.0", "+20.0", "2", "4"] in verdicts
    assert ["nce", "-1.0", "-", "-", "0", "1"] in verdicts


def test_clusters_are_what_they_say():
    task = swap.clusters(100)
    assert (len(task.train_targets), len(task.test_targets)) == (10_000, 5_000)
    assert task.train_targets.bincount().tolist() == [100] * 100
    train, test = task.train_inputs(torch.arange(10_000)), task.test_inputs(torch.arange(5_000))
    centres = torch.stack([train[task.train_targets == k].mean(0) for k in range(100)])
    nearest = torch.cdist(test, centres).argmin(1)
    assert (nearest == task.test_targets).float().mean() > 0.9
    assert set(task.mapping) | set(task.mapping.values()) == set(range(100))


def test_few_images_are_the_first_as_they_are():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (9, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    task = cifar10.cifar10(images, range(9), images[:2], [0, 1], torch.device("cpu"))
    few = swap.few_images(task, 5)
    assert few.train_targets.tolist() == [0, 1, 2, 3, 4]
    assert few.test_targets.tolist() == [0, 1]
    order = [torch.tensor([4, 0]), torch.tensor([3, 1])]
    for index, batch in zip(order, few.epoch_inputs(order, generator), strict=True):
        assert torch.equal(batch, task.train_inputs(index))
    assert not torch.equal(next(iter(task.epoch_inputs(order, generator))), task.train_inputs(order[0]))
    assert len(few.features) == 5


def test_the_drop_in_goes_by_its_name():
    def row(spec):
        name, given = parse_loss(spec)
        return {"loss": name, "hyperparameters": harness.hyperparameters(name, given)}

    rows = [row(spec) for spec in ("nce+rce", harness.DROP_IN, "ce", "gce", "gce:q=0.5")]
    shown = [tables.loss_label(row, rows) for row in rows]
    assert shown == ["nce+rce", "APLLoss()", "ce", "gce (q=0.7)", "gce (q=0.5)"]


def test_a_run_of_hours_keeps_the_commit_it_started_with(monkeypatch):
    harness.git_commit.cache_clear()
    answers = iter(["abc1234\n", "def5678-dirty\n"])
    monkeypatch.setattr(harness.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, next(answers)))
    assert [harness.git_commit(), harness.git_commit()] == ["abc1234", "abc1234"]
    harness.git_commit.cache_clear()


def test_no_commit_says_what_other_losses_than_these_are(monkeypatch, tmp_path):
    harness.git_commit.cache_clear()
    monkeypatch.setattr(harness.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "abc1234\n"))
    assert harness.git_commit() == "abc1234"
    harness.git_commit.cache_clear()
    monkeypatch.setattr(harness.noisyloss, "__file__", str(tmp_path / "noisyloss" / "__init__.py"))
    assert harness.git_commit() is None
    harness.git_commit.cache_clear()
