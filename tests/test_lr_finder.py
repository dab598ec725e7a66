"""The learning-rate finder: the suggestion, the sweep on known curves, and the command."""

import dataclasses
import math
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.lr_finder import suggest, sweep
from pipeline.params import Optimization
from pipeline.records import RunId
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.weights import make_weights
from pipeline.training.optimizers import parameter_groups
from pipeline.training.phase import Phase
from tests.digits import write_digits
from tests.stages.test_recipes_in_stages import CONFIG, small_params
from tests.test_stages import ROOT, contents

CPU = torch.device("cpu")


def quadratic(curvature, offset=0.0, **settings):
    """A phase that minimises curvature / 2 * w^2 + offset from w = 1.

    Gradient descent w <- (1 - lr * curvature) w diverges for lr above 2 / curvature.
    """
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(1))
    asked = Optimization(epochs=1, lr=0.1, **({"momentum": 0.0} | settings))

    def loss(batch):
        return (curvature / 2 * module.weight**2 + offset).expand(4)

    return Phase(
        "head", module, parameter_groups(module, asked), asked, 1,
        lambda: [(range(4),)], loss, dict, "val_loss", module.train,
    )  # fmt: skip


def test_the_steepest_fall_before_the_smallest_loss_is_suggested():
    rates = 10.0 ** np.arange(-6, 2)
    losses = np.array([2.0, 2.0, 1.9, 1.0, 0.2, 0.1, 0.5, 9.0])
    # central differences a decade: -0.05, -0.5, -0.85 at 1e-3, -0.45, then -0.1 at the end
    assert suggest(rates, losses) == 1e-3


def test_the_noise_of_single_batches_decides_nothing():
    rates = np.geomspace(1e-7, 10, 100)
    falling = 2.3 - 0.9 * np.clip(np.log10(rates) + 3.5, 0, 2.5)  # from 3e-4 to 0.1
    blown = np.where(rates > 0.1, 5.0, falling)
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    noise[1] -= 0.5  # a steep fall from the first to the second
    assert 5e-4 < suggest(rates, blown + noise) < 0.1


def test_what_falls_after_the_smallest_loss_is_not_considered():
    rates = 10.0 ** np.arange(-5, 1)
    losses = np.array([1.0, 0.8, 0.3, 0.25, 8.0, 0.45])  # the steepest fall is the last
    assert suggest(rates, losses) == 1e-4


def test_a_loss_that_only_rises_gives_the_lowest_rates():
    rates = 10.0 ** np.arange(-5, 0)
    assert suggest(rates, np.array([1.0, 2.0, 3.0, 4.0, 5.0])) <= 1e-4


@pytest.mark.parametrize("curvature", [0.5, 20.0, 4000.0])
def test_the_suggestion_is_below_divergence_and_not_far(curvature):
    limit = 2 / curvature
    found = sweep(quadratic(curvature), CPU, "fp32", limit / 1e5, limit * 1e4, 100)
    assert limit / 100 < found.suggested < limit
    assert len(found.rates) == len(found.losses) < 100  # it stops once the loss blows up
    assert found.rates[-1] > limit and (np.diff(found.rates) > 0).all()


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e-3])
def test_losses_below_zero_are_swept_too(offset):
    found = sweep(quadratic(20.0, offset), CPU, "fp32", 1e-6, 10.0, 60)
    assert 0.1 / 100 < found.suggested < 0.1


def test_smoothing_by_hand():
    found = sweep(quadratic(20.0, momentum=0.0), CPU, "fp32", 1e-4, 1e-2, 5)
    weight, average, expected = 1.0, 0.0, []
    for step, rate in enumerate(np.geomspace(1e-4, 1e-2, 5), start=1):
        average = 0.9 * average + 0.1 * 10 * weight**2
        expected.append(average / (1 - 0.9**step))
        weight -= rate * 20 * weight
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_groups_keep_their_shares_of_the_rate():
    phase = quadratic(1.0)
    phase.groups[0]["lr"] = 0.1 * phase.settings.lr
    slow = sweep(phase, CPU, "fp32", 1e-3, 1e3, 60)
    plain = sweep(quadratic(1.0), CPU, "fp32", 1e-4, 1e2, 60)
    assert slow.losses.tolist() == pytest.approx(plain.losses.tolist(), rel=1e-4)


def test_batches_are_made_in_full_precision_as_in_training():
    phase = quadratic(1.0)
    made = []

    def batches():
        made.append(torch.is_autocast_enabled("cpu"))
        yield (range(4),)

    sweep(dataclasses.replace(phase, batches=batches), CPU, "bf16", 1e-3, 1e3, 20)
    assert len(made) > 5 and not any(made)


def test_a_start_that_is_too_high_is_an_error():
    with pytest.raises(InputError, match=r"^head: the loss blows up at .* of 1e\+20 already"):
        sweep(quadratic(20.0), CPU, "fp32", 1e20, 1e30, 10)


def test_a_sweep_draws_nothing_from_the_global_generators():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    sweep(quadratic(20.0), CPU, "fp32", 1e-3, 1.0, 10)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project that is ready to train, by methods of every recipe."""
    folder = tmp_path_factory.mktemp("finder")
    params = small_params()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "pretrained").mkdir()
        text = CONFIG.read_text(encoding="utf-8").replace("    - 10\n", "    - 4\n")
        (folder / "params.yaml").write_text(text, encoding="utf-8")
        write_digits(folder / "data/target", [5, 6, 7], 20)
        write_digits(folder / "data/source", [0, 1, 2], 15)
        images(params)
        prepare(params)
        make_weights(params)
    return folder


@pytest.fixture
def command(project, monkeypatch, capsys):
    """Run the command in this process; what it printed, and the error if there is one."""
    from pipeline import lr_finder

    monkeypatch.chdir(project)
    monkeypatch.setattr("pipeline.check.load", small_params)

    def run(*given):
        monkeypatch.setattr("sys.argv", ["lr_finder", *given])
        try:
            lr_finder.main()
        except InputError as error:
            return capsys.readouterr().out, str(error)
        return capsys.readouterr().out, None

    return run


def test_it_prints_draws_and_writes(command, project):
    said, error = command("finetune", "--steps", "30")
    assert error is None and said.startswith("finetune: end_to_end: suggested lr ")
    assert "(params.yaml has 0.01)" in said and said.count("\n") == 1
    table = pd.read_csv(project / "lr_finder/finetune-n4-s0-end_to_end.csv")
    assert list(table) == ["lr", "loss"] and 3 <= len(table) <= 30
    assert table["lr"].iloc[0] == pytest.approx(1e-7)
    suggested = float(said.split("suggested lr ")[1].split()[0])
    assert any(math.isclose(suggested, rate, rel_tol=0.06) for rate in table["lr"])
    drawing = (project / "lr_finder/finetune-n4-s0-end_to_end.svg").read_text()
    assert "<svg" in drawing


def test_nothing_of_a_run_is_touched_and_the_same_comes_again(command, project):
    before = contents("prepared", "weights")
    first = command("scratch", "--steps", "8")
    files = contents("lr_finder")
    assert command("scratch", "--steps", "8") == first
    assert contents("lr_finder") == files
    assert contents("prepared", "weights") == before
    assert not (project / "runs").exists()


def test_a_later_phase_comes_after_those_before_it(command):
    said, error = command("breakdown", "--phase", "head", "--steps", "8")
    assert error is None
    first, last = said.splitlines()
    assert first == "breakdown: training encoder first"
    assert last.startswith("breakdown: head: suggested lr ")


def test_phases_before_it_have_the_epochs_of_a_matched_budget(project, monkeypatch):
    from pipeline import lr_finder

    monkeypatch.chdir(project)
    params = small_params()
    compare = params.compare.model_copy(update={"budget": "matched"})
    training = params.training.model_copy(update={"passes": 9})
    params = params.model_copy(update={"compare": compare, "training": training})
    trained = []
    monkeypatch.setattr(lr_finder, "fit", lambda phase, *_: trained.append(phase))
    run = RunId("retrained_head", 4, 0)
    phase, _ = lr_finder.find_phase(params, run, "head")
    assert [earlier.settings.epochs for earlier in trained] == [5]
    assert phase.settings.epochs == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["finetun"], "there is no method 'finetun'"),
        (["finetune", "--phase", "heads"], "no phase 'heads'; valid are end_to_end"),
        (["breakdown", "--phase", "haed"], "no phase 'haed'; did you mean 'head'?"),
        (["features_svm"], "solved in closed form and has no learning rate"),
        (["features_svm", "--phase", "solve"], "solved in closed form"),
        (["finetune", "--shots", "7"], "--shots: must be one of 4"),
        (["finetune", "--seed", "7"], "--seed: must be one of 0"),
        (["finetune", "--from", "0"], "--from 0 --to 10: must be two rates above 0"),
        (["finetune", "--from", "1", "--to", "0.1"], "the lower first"),
        (["finetune", "--from", "nan"], "must be two rates"),
        (["finetune", "--steps", "2"], "--steps 2: must be at least 3"),
        (["finetune", "--from", "1e18", "--to", "1e30"], "start lower, with --from"),
    ],
    ids=" ".join,
)
def test_wrong_wishes_are_one_line(command, given, said):
    printed, error = command(*given)
    assert error is not None and said in error and "\n" not in error
    assert "training encoder first" not in printed


def test_a_project_that_is_not_prepared_is_told_what_to_do(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, error = command("finetune")
    assert error is not None and "run dvc repro prepare weights first" in error


@pytest.mark.slow
def test_it_is_a_program(project, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(project, copied)
    program = [sys.executable, "-m", "pipeline.lr_finder"]
    ready = {"cwd": copied, "env": {"PYTHONPATH": str(ROOT), "PATH": ""}, "capture_output": True}
    wrong = subprocess.run([*program, "finetun"], **ready, text=True, timeout=120)
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.startswith("error: command line: there is no method 'finetun'")
    assert wrong.stderr.count("\n") == 1
