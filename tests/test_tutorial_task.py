"""The tutorial of a task of one's own, followed line by line in a folder outside of the repository."""

import os
from functools import partial
from pathlib import Path

import pytest
from tutorials import Tutorial

from analysis import records
from estimators import Exact
from tasks import TaskError, check_task

ROOT = Path(__file__).parents[1]
PAGE = Tutorial("tutorial_task.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tutorial_task")
    PAGE.write_files(folder)
    return folder


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_it_says(folder):
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = own | {"REPO": str(ROOT), "OMP_NUM_THREADS": "1"}
    check, _, table = PAGE.run(folder, environment)
    assert "1 passed" in check
    assert "6 runs: 6 finished" in table and "error on test; lower is better" in table
    frame = records.load(folder / "runs" / "codes")
    assert set(frame["task"]) == {"binary_code"} and set(frame["estimator"]) == {"rloo", "reinforce"}
    assert set(frame["task.bits"]) == {8} and set(frame["task.decay"]) == {0.0}
    assert frame["test_error"].dropna().between(1, 12).all()  # 64 pixels of variance below 1/4
    assert (folder / "runs" / "codes" / "report" / "learning_curves.png").exists()


def test_the_mistakes_that_the_tutorial_names_are_found():
    source, _ = PAGE.blocks("python")
    for right, wrong, words in (
        (
            "uniform(outputs.shape, outputs.dtype, outputs.device, 1)",
            "torch.rand(outputs.shape)",
            "BinaryCode: evaluates other numbers on valid when it is asked again: its noise must come from its streams",
        ),
        (".square().sum(-1)\n\n    def loss", ".square().sum(-1).mean()\n\n    def loss", "must be one value for each"),
        (
            ".square().sum(-1)\n\n    def loss",
            ".square().sum(-1).mean(-1)\n\n    def loss",
            "must be one value for each",
        ),
    ):
        assert right in source
        namespace: dict[str, object] = {}
        exec(source.replace(right, wrong), namespace)
        with pytest.raises(TaskError, match=words):
            check_task(partial(namespace["BinaryCode"], bits=3), exact=Exact())  # type: ignore[arg-type]
