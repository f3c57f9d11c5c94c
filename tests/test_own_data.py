"""Data of one's own: the tutorial, in a folder outside of the repository; names and records; what is checked."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_runs import seal_again
from hydra.errors import HydraException
from test_training import config, drop_times, rows, train
from tutorials import Tutorial

from analysis import records
from tasks.datasets import DataError, Dataset, Split, check_dataset, load_dataset, make_dataset, split_of
from training.config import command as command_line
from training.config import identity, targets
from training.config.compose import runs_of_command
from training.config.plan import packs_of
from training.errors import UserError
from training.gradients import basket
from training.pack.build import build, load_once
from training.pack.memory import rehearse
from training.sweep import estimate

ROOT = Path(__file__).parents[1]
PAGE = Tutorial("tutorial_data.md")
CPU = torch.device("cpu")
LINE = "python train.py -m ++data._target_=stripes.load data.name=stripes estimator=rloo task.latents=3"
OWN = ["++data._target_=stripes.load", "data.name=stripes", "estimator=rloo", "task.latents=3", "batch_size=50"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tutorial_data")
    PAGE.write_files(folder)
    return folder


@pytest.fixture
def folder(written, monkeypatch):
    """The current one, with the tutorial's module."""
    monkeypatch.chdir(written)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield written
    sys.modules.pop("stripes", None)


# --- the tutorial ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_it_says(written):
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = own | {"REPO": str(ROOT), "OMP_NUM_THREADS": "1"}
    _, table = PAGE.run(written, environment)
    assert "4 runs: 4 finished" in table and "vae_bernoulli on stripes" in table
    frame = records.load(written / "runs" / "stripes")
    assert set(frame["data"]) == {"stripes"} and set(frame["data.noise"]) == {0.2}
    assert frame.attrs["roles"]["data.noise"] == "trains"
    (source,) = set(frame["protocol.source"].dropna())
    assert re.fullmatch(r"stripes\.load, sha256 [0-9a-f]{8}", source)
    assert frame["test_bound"].dropna().between(-22, -13).all()  # 36 bits: 25 nats by chance, 13 for the best


def test_the_sentence_of_the_tutorial(folder):
    (sentence,) = (block.strip() for block in PAGE.blocks("text") if block.startswith("data="))
    (run,) = runs_of_command(f"{LINE} ++data.noise=-1")
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        rehearse(run.config)


# --- names, packs, records -------------------------------------------------------------------------------------------


def test_the_options_of_the_function_are_the_runs(folder):
    """Its defaults; numbers as numbers; a name for each; the seeds of each in a pack."""
    (run,) = runs_of_command(LINE)
    own = {"name": "stripes", "_target_": "stripes.load", "images": 1200, "noise": 0.1, "binarization": "dynamic"}
    assert run.config["data"] == {**own, "train_evaluated": 10_000}
    runs = runs_of_command(f"{LINE} ++data.noise=0.1,1 seed=0,1")
    assert [job.config["data"]["noise"] for job in runs] == [0.1, 0.1, 1.0, 1.0]
    assert len({job.name for job in runs}) == 4 and run.name in {job.name for job in runs}
    assert len(packs_of(runs, 1, 10)) == 2
    (other,) = runs_of_command(f"{LINE} data.train_evaluated=50")
    assert other.name == run.name and load_once(**other.config["data"]).train_evaluated == 50
    (chosen,) = runs_of_command(f"{LINE} data=digits data.binarization=static")
    assert chosen.config["data"] == {**run.config["data"], "binarization": "static"}


def test_an_option_of_the_function_is_added_and_a_foreign_one_refused(folder):
    given = ["data._target_=stripes.load", "data.name=stripes", "data.noise=0.3", "task.latents=3"]
    assert command_line.checked(given) == ["++data._target_=stripes.load", given[1], "++data.noise=0.3", given[3]]
    for line, words in (
        (
            f"{LINE} ++data.nois=0.3",
            "data.nois: there is no such option (did you mean noise?); allowed here: _target_",
        ),
        ("python train.py -m data.noise=0.3", "Could not override 'data.noise'"),
        ("python train.py -m data=mnist data.noise=0.3", "Could not override 'data.noise'"),
        ("python train.py -m ++data._target_=stripes.load", "data._target_ is other data: name it with data.name=NAME"),
        (f"{LINE} data.name=mnist", "data.name=mnist is the name of published data"),
        (f"{LINE} ++data._target_=stripes.nothing", "data._target_=stripes.nothing cannot be found"),
        (f"{LINE} ++data._target_=nowhere.load", "cannot be found"),
        (f"{LINE} ++data._target_=stripes.np", "is no function: it must be one that returns a tasks.Dataset"),
        (f"{LINE} ++data._target_=tasks.datasets.Dataset", "is no function"),
        (f"{LINE} ++data._target_=load", "name a function as MODULE.FUNCTION"),
    ):
        with pytest.raises((UserError, HydraException), match=re.escape(words)):
            runs_of_command(line)


def test_a_file_of_options_of_ones_own(folder):
    (folder / "conf" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "data" / "fine.yaml").write_text("name: fine\n_target_: stripes.load\nnoise: 0.02\n")
    line = f"python train.py -m data=fine,digits hydra.searchpath=[file://{folder}/conf]"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = line.replace("python train.py", f"{sys.executable} {ROOT / 'train.py'}").split()
    done = subprocess.run([*words, "dry_run=true"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "2 runs: 2 to do in 2 packs" in done.stdout, done.stderr


def test_it_goes_on_is_evaluated_again_and_its_gradients_are_measured(folder, tmp_path):
    (whole,) = train(tmp_path / "whole", *OWN, steps=20)
    (path,) = train(tmp_path / "on", *OWN, steps=10)
    assert train(tmp_path / "on", *OWN, steps=20) == [path] and path.name == whole.name
    assert list(map(drop_times, rows(path))) == list(map(drop_times, rows(whole)))
    one, two = (records.RunRecord(run).result() for run in (path, whole))
    assert one["protocol"] == two["protocol"] and one["protocol"]["train"] == 800
    assert one["config"]["data"]["_target_"] == "stripes.load"
    del sys.modules["stripes"]
    with pytest.raises(UserError, match="data._target_=stripes.load is not of this library.*--allow stripes$"):
        basket.load_run(path, CPU)
    assert "stripes" not in sys.modules
    pack = basket.load_run(path, CPU, ["stripes"])
    assert pack.step == 20 and pack.data.name == "stripes"


def test_somebodys_data_may_not_be_a_function_of_ours(folder, tmp_path):
    (path,) = train(tmp_path, *OWN, steps=10)
    options = yaml.safe_load((path / records.CONFIG).read_text())
    for target, words in (
        ("tasks.datasets.download.save_npz", "--allow tasks.datasets.download"),
        ("os.remove", "--allow os"),
    ):
        changed = {**options, "data": {"name": "stripes", "_target_": target, "path": "x"}}
        (path / records.CONFIG).write_text(yaml.safe_dump(changed))
        seal_again(path)
        with pytest.raises(UserError, match=words):
            basket.load_run(path, CPU)


def test_a_sweep_is_estimated_with_them(folder):
    packs = packs_of(runs_of_command(f"{LINE} steps=10 replicas=2 test_samples=2 valid_samples=2"), 1, 10)
    first, last = estimate.lines(packs, 1)
    assert first.startswith("pack 1: rloo on vae_bernoulli x 2: about 0:0") and "basket" not in first
    assert "1 of 1 kinds of packs were tried" in last


def test_other_images_have_another_source():
    first, again, other = (small_source(value) for value in (0.2, 0.2, 0.3))
    assert first == again != other


def small_source(value, **changes):
    sys.modules["own_source"] = module = type(sys)("own_source")
    module.load = lambda: make_dataset("x", (1, 2), "none", *[split_of(np.full((3, 1, 2), value))] * 3, **changes)
    try:
        return targets.load({"name": "mine", "_target_": "own_source.load"}).source
    finally:
        del sys.modules["own_source"]


def test_a_source_of_its_own_is_kept():
    assert small_source(0.2, source="a camera").startswith("a camera, sha256 ")


def test_names_of_published_data_stay():
    job = config("data=digits")
    assert "data._target_" not in identity.trajectory(job) and job["data"].keys() == {
        *("name", "root", "binarization", "download", "train_evaluated")
    }


# --- what is checked -------------------------------------------------------------------------------------------------


def grey(images=4, **changes):
    return Split(
        **{"pixels": torch.full((images, 6), 200, dtype=torch.uint8), "levels": 255, "labels": None, **changes}
    )


def dataset(**changes):
    return Dataset(
        **{
            **{"name": "x", "image_shape": (2, 3), "binarization": "none"},
            **{"train": grey(), "valid": grey(), "test": grey(), **changes},
        }
    )


def test_published_data_are_right():
    for binarization in ("dynamic", "static", "threshold", "none"):
        check_dataset(load_dataset("digits", binarization=binarization))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_shape": (2, 0)}, "image_shape (2, 0): it must be (height, width), both at least 1"),
        ({"image_shape": (6,)}, "image_shape (6,)"),
        ({"image_shape": (3, 3)}, "train pixels of shape [4, 6]: with image_shape (3, 3) it must be [images, 9]"),
        ({"binarization": "some"}, "binarization 'some': it must be one of static, dynamic, threshold, none"),
        ({"valid": grey(0)}, "has no valid images"),
        ({"test": None}, "has a test that is a NoneType"),
        (
            {"test": grey(pixels=torch.full((4, 6), 0.5))},
            "test pixels of torch.float32: they must be torch.uint8 on the CPU",
        ),
        ({"test": grey(pixels=torch.zeros(4, 2, 3, dtype=torch.uint8))}, "test pixels of shape [4, 2, 3]"),
        ({"test": grey(levels=100)}, "test pixels up to 200 with levels=100: intensities are pixels / levels"),
        ({"test": grey(levels=1.0)}, "levels=1.0"),
        ({"binarization": "static"}, "train images of 255 levels, which does not go with its binarization"),
        ({"binarization": "dynamic"}, "valid images of 255 levels"),
        ({"train": grey(labels=torch.zeros(3, dtype=torch.int64))}, "train labels that are no torch.int64 [4]"),
        ({"train": grey(labels=torch.full((4,), -1))}, "train label -1: the first class is 0"),
        ({"train": grey(labels=torch.zeros(4, dtype=torch.int64))}, "labels in some splits and none in others"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_each_mistake_of_a_data_set_is_one_sentence(changes, words):
    check_dataset(dataset())
    with pytest.raises(DataError, match=re.escape(words)):
        check_dataset(dataset(**changes))


def test_what_is_no_data_set():
    with pytest.raises(DataError, match=r"must be a tasks.Dataset, not a tuple"):
        check_dataset((1, 2))


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.array([[0.5, np.nan], [np.inf, 1.0]]), None, "2 values of the images are not finite"),
        (np.array([[0.5, 1.5]]), None, "must be intensities in [0, 1], not from 0.5 to 1.5"),
        (np.array([[-0.5, 0.5]]), None, "not from -0.5 to 0.5"),
        (np.array([[1, 2]]), None, "of floats in [0, 1], bytes or bools, not [1, 2] of int64"),
        (np.array([0.5]), None, "must be [images, height, width]"),
        (np.zeros((2, 3)), [0, 1, 2], "labels must be 2 integers, one for each image, not [3] of int64"),
        (np.zeros((2, 3)), [0.5, 1.0], "not [2] of float64"),
    ],
)
def test_each_mistake_of_images_is_one_sentence(images, labels, words):
    with pytest.raises(DataError, match=re.escape(words)):
        split_of(images, labels)


def test_images_of_each_kind_become_bytes():
    """Floats to the nearest of 255 levels; bools as bits; what is given is not shared."""
    floats, given = torch.tensor([[[0.0, 0.5], [0.499, 1.0]]]), np.array([[7, 255]], np.uint8)
    grey, same, bits = split_of(floats, [3]), split_of(given), split_of(given > 100)
    assert grey.pixels.tolist() == [[0, 128, 127, 255]] and grey.levels == 255 and grey.labels.tolist() == [3]
    given[:] = 0
    assert same.pixels.tolist() == [[7, 255]] and same.levels == 255 and same.labels is None
    assert bits.pixels.tolist() == [[0, 1]] and bits.levels == 1


def test_bits_are_binarized_once_at_most():
    bits = split_of(np.array([[True, False]]))
    data = make_dataset("x", (1, 2), "static", bits, bits, bits)
    assert check_dataset(data) is data and data.test.pixels.tolist() == [[1, 0]]
    for binarization in ("dynamic", "none"):
        with pytest.raises(DataError, match="are bits already"):
            make_dataset("x", (1, 2), binarization, bits, bits, bits)
    with pytest.raises(DataError, match="There is no binarization 'some'"):
        make_dataset("x", (1, 2), "some", bits, bits, bits)


def test_a_function_that_returns_something_else_or_raises(monkeypatch):
    module = type(sys)("own_wrong")
    monkeypatch.setitem(sys.modules, "own_wrong", module)
    node = {"name": "mine", "_target_": "own_wrong.load"}

    def missing(folder: str = "here"):
        raise FileNotFoundError(f"{folder}: no such file")

    for function, words in (
        (lambda: None, r"data=mine \(own_wrong.load\): must be a tasks.Dataset, not a NoneType"),
        (lambda needed: None, r"data=mine \(own_wrong.load\): missing a required argument: 'needed'"),
        (missing, r"data=mine \(own_wrong.load\): here: no such file"),
        (lambda: dataset(image_shape=(1, 1)), "with image_shape"),
    ):
        module.load = function
        with pytest.raises(UserError, match=words):
            targets.load(node)
    module.load = lambda name: dataset(name=f"not {name}", train=dataclasses.replace(grey(), levels=210))
    data = targets.load({**node, "train_evaluated": 3})
    assert (data.name, data.train_evaluated) == ("mine", 3)
    assert build([config(*OWN[2:], "task.likelihood=gaussian", data={**node}, batch_size=2)], CPU, data=data).step == 0
