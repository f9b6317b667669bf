"""benchmarks/speed.py: its one-hot forms are our losses; rows are written, skipped and shown. No times are tested."""

import functools
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

import speed

from noisyloss import CELoss, PointwiseLoss, WeightedSum, create_loss

SETTINGS = ["focal:gamma=2", "focal:detach_modulator=True", "rce:A=-4", "gce:q=0.3", "nfl:detach_modulator=True"]
SETTINGS += ["sce", "sce:alpha=6,beta=0.1,A=-4", "mae+rce", "nce+rce:alpha=10,beta=0.1", "nfl+mae:gamma=2", "ngce+rce"]
FIELDS = {*speed.IDENTITY, *speed.RESULTS, "implementation", "measure", "rounds", "python", "command", "date"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the script on tiny shapes, by a compiler that needs no C++; return all rows."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(speed, "git_commit", lambda: "abc1234")
    threads = torch.get_num_threads()

    def run(*arguments, shapes=("4x3",), losses=("ce", "nce+rce"), modes=speed.MODES):
        options = ["--out", tmp_path / "new", "--shapes", *shapes, "--losses", *losses, "--modes", *modes]
        speed.main([*map(str, options), "--device", "cpu", "--threads", "1", "--seconds", "0", *arguments])
        return [json.loads(line) for line in (tmp_path / "new" / "results.jsonl").read_text().splitlines()]

    yield run
    torch.set_num_threads(threads)


# The one-hot forms


@pytest.mark.parametrize("spec", [*speed.FORMS, *SETTINGS])
def test_one_hot_form_is_our_loss_where_nothing_is_clamped(spec, generator):
    name, given = speed.parse_loss(spec)
    loss = create_loss(name, **given)
    x = torch.randn(32, 7, dtype=torch.float64, generator=generator).requires_grad_()
    y = torch.randint(7, (32,), generator=generator)
    assert x.softmax(1).min() > 1e-7
    ours, theirs = loss(x, y), speed.one_hot_form(loss)(x, y)
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in (theirs, ours)), rtol=1e-9, atol=1e-12)


def test_a_clamped_probability_has_no_gradient(generator):
    x = torch.tensor([[0.0, 20.0]], requires_grad=True)  # as in published code; ours has one
    for form in (speed.one_hot_form(create_loss("gce", q=0.3)), create_loss("gce", q=0.3)):
        (grad,) = torch.autograd.grad(form(x, torch.tensor([0])), x)
        assert bool(grad.any()) == isinstance(form, PointwiseLoss)


def test_a_loss_without_one_hot_form_has_none():
    class Toy(PointwiseLoss):
        def f(self, log_p):
            return -2 * log_p

    for loss in (Toy(), WeightedSum([CELoss(), Toy()], [1, 1]), CELoss(label_smoothing=0.1)):
        assert speed.one_hot_form(loss) is None


# Rows, table and plot


def test_writes_rows_a_table_and_plots(run, tmp_path, capsys):
    rows = run(shapes=["4x3", "5x40:bfloat16"])
    cells = [(row["loss"], row["implementation"], row["mode"], row["shape"], row["dtype"]) for row in rows]
    expected = [
        (loss, implementation, mode, *shape)
        for loss, implementations in {
            "ce": ("torch", "noisyloss", "one-hot"),
            "nce+rce": ("noisyloss", "one-hot"),
        }.items()
        for implementation in implementations
        for mode in ("eager", "compiled")
        for shape in (("4x3", "float32"), ("5x40", "bfloat16"))
        for _ in speed.PASSES
    ]
    assert sorted(cells) == sorted(expected)
    for row in rows:
        assert set(row) == FIELDS
        assert row["error"] is row["copy_share"] is row["peak_bytes"] is None
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert 0 < row["ratio_p20"] <= row["ratio"] <= row["ratio_p80"]
        assert (row["rounds"], row["commit"], row["torch"], row["threads"]) == (5, "abc1234", torch.__version__, 1)
        assert row["implementation"] != "torch" or row["ratio"] == 1
    command = "--losses nce+rce --shapes 5x40 --dtype bfloat16 --modes compiled --device cpu --threads 1 --seconds 0.0"
    assert rows[-1]["command"] == f"python benchmarks/speed.py --out {tmp_path / 'new'} {command}"

    printed = capsys.readouterr().out
    assert "| loss      | 4×3 " in printed
    assert "| torch, µs | " in printed
    assert printed.count("\n| nce+rce ") == 2
    assert "failed" not in printed
    plots = list((tmp_path / "new").glob("speed-*.png"))
    assert len(plots) == 2
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)


def test_measures_what_is_not_there(run, monkeypatch, capsys):
    rows = run(modes=["eager"])
    assert run(modes=["eager"]) == rows
    more = run()
    assert more[: len(rows)] == rows
    assert {row["mode"] for row in more[len(rows) :]} == {"compiled"}
    assert len(run("--again")) == 2 * len(more)
    monkeypatch.setattr(speed, "git_commit", lambda: "def5678")
    assert len(run()) == 3 * len(more)

    capsys.readouterr()
    monkeypatch.setattr(speed, "measure", None)
    run("--table")
    assert "commit def5678\n" in capsys.readouterr().out  # the last ones count
    monkeypatch.setattr(speed, "git_commit", lambda: None)
    with pytest.raises(TypeError, match="NoneType"):  # would measure
        run()


def test_table_has_the_ratios_of_both_modes_and_memory(run, monkeypatch, capsys):
    def measure(about, calls, x, *_):
        numbers = dict.fromkeys(speed.RESULTS, 2.0 if about["mode"] == "eager" else 1.5)
        numbers |= {"copy_share": 0.825, "peak_bytes": x.nbytes, "error": None}
        return [about | numbers | {"implementation": name, "measure": "both", "rounds": 5} for name in calls]

    monkeypatch.setattr(speed, "measure", measure)
    run("--no-one-hot", shapes=["40x3", "4x5"], losses=["nce+rce", "mae"])
    assert capsys.readouterr().out.split("\n\n")[2].splitlines() == [
        "| loss      | 4×5         | 40×3        | peak / input | of copy   |",
        "| --------- | ----------- | ----------- | ------------ | --------- |",
        "| torch, µs | – / –       | – / –       | – / –        | – / –     |",
        "| mae       | 2.00 / 1.50 | 2.00 / 1.50 | 1.00 / 1.00  | 82% / 82% |",
        "| nce+rce   | 2.00 / 1.50 | 2.00 / 1.50 | 1.00 / 1.00  | 82% / 82% |",
    ]


@pytest.mark.parametrize("shape", ["32x10", "64x1000"])
def test_a_late_loss_is_one_whose_warm_up_is_over(shape, run, monkeypatch):
    seen = {}

    def measure(about, calls, x, y, *_):
        values = [calls["noisyloss"](x, y).item() for _ in range(20)]
        assert max(values) == pytest.approx(min(values))
        seen[about["loss"]] = values[0]
        numbers = dict.fromkeys(speed.RESULTS, 1.0) | {"error": None, "rounds": 5}
        return [about | numbers | {"implementation": "noisyloss", "measure": "both"}]

    monkeypatch.setattr(speed, "measure", measure)
    plain = speed.DROP_IN.replace(",warmup=True", "")
    run(shapes=[shape], losses=["ce", plain, speed.DROP_IN, speed.DROP_IN + speed.LATE], modes=["eager"])
    ce, plain, early, late = seen.values()
    assert early == pytest.approx(ce)
    assert late == pytest.approx(plain)
    assert late != pytest.approx(early, rel=0.1)


def test_one_hot_forms_can_be_left_out(run, monkeypatch, capsys):
    assert {row["implementation"] for row in run("--no-one-hot", modes=["eager"])} == {"torch", "noisyloss"}
    assert len(run(modes=["eager"])) == 9 + 15  # measured again, with them
    monkeypatch.setattr(speed, "ONE_HOT_LIMIT", 11)
    rows = run(shapes=["4x4"], modes=["eager"])
    assert not any(row["implementation"] == "one-hot" for row in rows if row["shape"] == "4x4")
    assert "4x4: no one-hot forms" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["nce+rce", "torch"])
def test_goes_on_where_compiling_fails(broken, run, monkeypatch, capsys):
    def compile(call, **kwargs):
        if (call is F.cross_entropy) if broken == "torch" else isinstance(call, WeightedSum):
            raise RuntimeError("no compiler\nand more")
        return call

    monkeypatch.setattr(torch, "compile", compile)
    rows = run(modes=["compiled"])
    for row in rows:
        failed = broken == "torch" or (row["loss"], row["implementation"]) == ("nce+rce", "noisyloss")
        assert row["error"] == ("RuntimeError: no compiler" if failed else None)
        assert (row["p50"] is None, row["ratio"] is None, row["rounds"] == 0) == (failed,) * 3
    printed = capsys.readouterr().out
    assert "failed: nce+rce, noisyloss, 4x3, compiled: RuntimeError: no compiler\n" in printed
    assert ("| nce+rce   | –    | " in printed) == (broken == "nce+rce")  # there is a number beside it


def test_saved_bytes_are_what_autograd_keeps_beyond_the_input():
    x, y = torch.randn(8, 5, requires_grad=True), torch.zeros(8, dtype=torch.int64)
    assert speed.saved_bytes(lambda x, y: (x * x).sum() + x[:, 1:].square().sum(), x, y) == 0
    assert speed.saved_bytes(lambda x, y: x.gather(1, y[:, None]).sum(), x, y) == 0
    assert speed.saved_bytes(lambda x, y: x.log_softmax(1).sum(), x, y) == x.nbytes
    assert speed.saved_bytes(lambda x, y: (p := x.softmax(1)).square().sum() + p.exp().sum(), x, y) == 2 * x.nbytes


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--losses", "nope", "argument --losses: nope: "),
        ("--losses", "nce@late", "argument --losses: nce@late: expected @late behind a loss with warmup=True only"),
        ("--losses", "nce:warmup=True@end", "@end: expected @late behind a loss with warmup=True only"),
        ("--shapes", "128", "argument --shapes: 128: expected NxC"),
        ("--shapes", "4x1", "argument --shapes: 4x1: expected NxC"),
        ("--shapes", "4x3:int8", "argument --shapes: 4x3:int8: expected NxC:DTYPE with float32, bfloat16"),
    ],
)
def test_says_what_it_cannot_read(option, value, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        speed.main(["--out", str(tmp_path), "--device", "cpu", option, value])
    assert message in capsys.readouterr().err


def test_a_table_of_nothing(tmp_path, capsys):
    speed.main(["--out", str(tmp_path), "--table"])
    assert capsys.readouterr().out == f"no rows in {tmp_path}\n"
