"""What cannot be trained is known before anything trains: combinations are skipped, impossible values are errors."""

import os

import pytest
import torch
from test_cli import call

from tasks.datasets import BINARIZATIONS, CLASSES, DATASETS, DataError, blank_dataset, load_dataset
from training.config import validity
from training.config.compose import runs_of_command
from training.errors import UserError
from training.pack.build import build
from training.sweep import planning

FEW = "task.latents=3 steps=2 evaluate_every=2 valid_samples=1 test_samples=1"


def runs_of(arguments):
    return runs_of_command(f"python train.py -m device=cpu workers=1 {arguments}")


@pytest.mark.parametrize(
    ("arguments", "refused", "words"),
    [
        ("task.kl=relaxed estimator=gumbel_softmax,st_gumbel_softmax,nvil", 2, "no relaxed samples with a Concrete"),
        ("task.kl=relaxed task=vae_bernoulli,deep_vae_bernoulli estimator=reinmax", 2, "no relaxed samples"),
        ("task.kl=auto,sampled,analytic estimator=vimco", 1, "the objective would be no bound"),
        ("task=toy,vae_bernoulli data=none,digits", 2, "cannot train task="),
        ("task=vae_gaussian_pixels data.binarization=none,dynamic", 1, "is a density of grey images"),
        ("task=semi_supervised data=digits,mnist,omniglot,binarized_mnist", 2, "needs images with labels"),
        ("task=semi_supervised task.categories=10,5", 1, "task.categories=5 classes, and these have 10"),
        ("task.latents=1,2 task.categories=2,3 estimator=unordered_set", 2, "wants 4 different states"),
        ("task=deep_vae_bernoulli task.layers=2 task.latents=1,2 estimator=unordered_set", 1, "has 2**1; use fewer"),
        ("task=deep_vae_bernoulli task.layers=1,2 task.latents=11 estimator=exact,vimco", 2, "task=deep_vae_bernoulli"),
    ],
)  # fmt: skip
def test_combinations_are_skipped_with_a_reason(arguments, refused, words):
    """And a pack of such a run is refused with the same sentence; the runs that are left can be built."""
    arguments = arguments.replace("binarized_mnist", "binarized_mnist data.binarization=static")
    runs = runs_of(arguments)
    reasons = [validity.reason_to_skip(run.config) for run in runs]
    assert [reason is not None for reason in reasons].count(True) == refused, reasons
    for run, reason in zip(runs, reasons, strict=True):
        if reason:
            assert words in reason and "\n" not in reason
            with pytest.raises(UserError):
                planning.rehearse(run.config)
        else:
            planning.rehearse(run.config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("estimator.temperature=1,0", "temperature must be positive"),
        ("estimator=reinmax estimator.temperature=0.5", "estimator.temperature must be at least 1 and finite"),
        ("estimator=rloo estimator.num_samples=1", "num_samples must be at least 2"),
        ("task.latents=4,0", "latents"),
        ("task.hidden=[0]", "task.hidden must be widths of at least 1"),
        ("task=sbn_bernoulli task.layers=2,9", "task.layers must be from 1 to 4, not 9"),
        ("task.prior=other", "task.prior must be one of uniform, learned"),
        ("data=binarized_mnist data.binarization=threshold", "binarized_mnist is bits already"),
        ("task.prior_temperature=0.5", "task.prior_temperature is an option of task.kl=relaxed"),
    ],
)
def test_impossible_values_stop_a_sweep_before_anything_trains_or_is_read(monkeypatch, tmp_path, arguments, words):
    """Of data that are not there, too: the form of a data set is known without reading it."""
    missing = [] if "data=" in arguments else ["data=mnist"]
    place = [f"runs_dir={tmp_path / 'runs'}", f"data.root={tmp_path}", "data.download=false", "progress=false"]
    code = call(monkeypatch, "-m", "workers=1", "device=cpu", *missing, *arguments.split(), *place)
    assert isinstance(code, str) and code.startswith("error: ") and words in code and "\n" not in code, code
    assert not list(tmp_path.rglob("*"))


def test_what_one_should_know_is_said_and_trained_all_the_same(tmp_path):
    estimators = "estimator=nvil,muprop,gumbel_softmax"
    plan = planning.make_plan(runs_of(f"{estimators} task.kl=analytic,auto {FEW} runs_dir={tmp_path}"))
    (line,) = [line for line in plan.lines() if "to beware of" in line]
    assert line.startswith("1 run to beware of: nvil divides its gradient") and plan.todo == 6
    quiet = runs_of(f"estimator=nvil estimator.variance_normalisation=false task.kl=analytic {FEW}")
    assert not any(validity.caution(run.config) for run in quiet)


def test_only_what_is_to_be_trained_is_tried(monkeypatch, tmp_path):
    """Once for each estimator, task and data: a sweep that is finished costs nothing."""
    tried = []
    monkeypatch.setattr(planning, "rehearse", lambda config: tried.append(config["estimator"]["name"]))
    runs = runs_of(f"estimator=nvil,muprop seed=range(3) optimizer.lr=1e-3,1e-4 {FEW} runs_dir={tmp_path}")
    planning.make_plan(runs)
    assert tried == ["nvil", "muprop"]
    for run in runs:
        assert run.record.claim.take()
        run.record.start("", [])
        run.record.finish({"status": "finished", "step": run.target.steps, "evaluation": run.target.evaluation})
        run.record.claim.release()
    assert planning.make_plan(runs).todo == 0 and tried == ["nvil", "muprop"]


@pytest.mark.parametrize("name", DATASETS)
def test_blank_data_have_the_form_of_the_data(name):
    for binarization in BINARIZATIONS:
        if name == "binarized_mnist" and binarization != "static":
            with pytest.raises(DataError, match="bits already"):
                blank_dataset(name, binarization)
            continue
        blank = blank_dataset(name, binarization)
        if name not in ("none", "digits") and "DATA_DIR" not in os.environ:
            continue
        real = load_dataset(name, os.environ.get("DATA_DIR", "data"), binarization, download=False)
        assert (blank.name, blank.image_shape) == (real.name, real.image_shape)
        for split in ("train", "valid", "test"):
            theirs, ours = getattr(real, split), getattr(blank, split)
            assert ours.levels == theirs.levels and ours.pixels.shape[1] == theirs.pixels.shape[1]
            assert (ours.labels is None) == (theirs.labels is None)
            if theirs.labels is not None and split == "train":
                assert len(theirs.labels.unique()) == len(ours.labels.unique()) == CLASSES[name]


def test_a_rehearsal_is_a_pack(tmp_path):
    """What it finds is what a pack with the real data finds."""
    (run,) = runs_of(f"estimator=rebar estimator.scale=0 {FEW}")
    sentences = []
    for make in (planning.rehearse, lambda config: build([config], torch.device("cpu"))):
        with pytest.raises(UserError) as error:
            make(run.config)
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]
