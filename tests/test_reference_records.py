"""``make reference``: seeds in order, within a time limit, and records that move to another clone in one archive."""

import gzip
import io
import random
import shutil
import tarfile
import threading

import pandas as pd
import pytest
import yaml
from fake_runs import make_config, write_run
from test_race import in_process

from analysis.records import DamagedRecord, archive, files, load
from analysis.statistics.summary import summarise
from analysis.tables.summary import to_markdown
from training import interrupt, paper, reference
from training.errors import UserError
from training.interrupt import Stopped
from training.sweep import run as sweep

TINY = ["task.latents=4", "steps=4", "evaluate_every=2", "evaluate_samples=1", "valid_samples=1", "test_samples=1"]
TINY += ["estimator=nvil,rloo", "replicas=2", "progress=false"]
RACE = ["race=halving", "race.rungs=[2]", "race.keep=[0.5]", "optimizer.lr=1e-3,1e-2"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``command(experiments, options)`` trains in this process, in ``tmp_path/runs``."""
    monkeypatch.setattr(sweep, "_train", in_process)
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))

    def call(*experiments, options=TINY, minutes="60"):
        words = [word for option in options for word in ("--set", option)]
        reference.main([*experiments, "--minutes", minutes, *words])

    return call


def test_records_move_to_another_clone(command, tmp_path, monkeypatch, capsys):
    """Trained here; there, without these runs or a checkpoint, tables are drawn and say what was raced over."""
    command("demo:full", options=[*TINY, *RACE, "task=vae_bernoulli"])
    said = capsys.readouterr().out
    assert "demo (full): 4 of 4 runs are at their end, at least 2 of each cell" in said and "6 runs, without" in said
    shutil.move(tmp_path / "runs", tmp_path / "gone")
    packed = tmp_path / "gone/reference.tar.gz"
    train = "python train.py -m +experiment=demo " + " ".join([*TINY, *RACE, "task=vae_bernoulli"])
    entry = {"train": train, "draw": ["python -m training.status {runs}"], "keep": []}
    monkeypatch.setattr(paper, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/paper.yaml").write_text(yaml.safe_dump({"demo": entry}))
    paper.main(["demo"])
    assert "2 cells" not in capsys.readouterr().out and not (tmp_path / "results/demo").exists()
    paper.main(["--records", str(packed)])
    assert capsys.readouterr().out.startswith(f"6 runs in {packed}\ndemo: 0 files written to")
    assert archive.unpack(packed, tmp_path / "there") == 6 and archive.unpack(packed, tmp_path / "there") == 0
    found = {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert {name.split("/")[2] for name in found} >= {"result.json", "metrics.jsonl", "run.json", ".hydra"}
    assert not any("checkpoint" in name or "claim" in name for name in found)
    one, two = (load(tmp_path / folder / "demo") for folder in ("there", "gone"))
    pd.testing.assert_frame_equal(one.drop(columns="path"), two.drop(columns="path"))
    assert "Raced over optimizer, compared on validation at 2 steps" in to_markdown(summarise(one))
    for name in found:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "gone" / name).read_bytes()


def test_every_cell_has_a_seed_before_one_has_two(command, tmp_path, monkeypatch, capsys):
    asked = []

    def run_sweep(runs, seeds):
        asked.append((runs[0].config["sweep"], seeds, {run.config["seed"] for run in runs}))
        if len(asked) == 3:
            raise UserError("one run failed")

    monkeypatch.setattr(reference, "run_sweep", run_sweep)
    (tmp_path / "runs/demo").mkdir(parents=True)
    with pytest.raises(UserError, match="demo .*: one run failed; there are no runs to pack"):
        command("demo:full", "every_estimator:full")
    assert asked == [("demo", 1, {0}), ("every_estimator", 1, {0}), ("demo", 2, {0, 1}), ("every_estimator", 2, {0, 1})]
    assert "demo (full): 0 of 8 runs are at their end, at least 0 of each cell" in capsys.readouterr().out


def test_the_time_ends_it_and_what_there_is_is_packed(command, tmp_path, monkeypatch, capsys):
    timers = []

    class Timer(threading.Timer):
        def start(self):
            timers.append(self)

    def until_asked(packs):
        in_process(packs[:1])
        assert not interrupt.asked() and 3400 < timers[0].interval < 3420
        timers[0].function()
        if interrupt.asked():
            raise Stopped("stopped; checkpoints are written")

    monkeypatch.setattr(reference.threading, "Timer", Timer)
    monkeypatch.setattr(sweep, "_train", until_asked)
    command("demo:full")
    said = capsys.readouterr().out
    assert "stopped; checkpoints are written" in said
    assert "demo (full): 1 of 8 runs are at their end, at least 0 of each cell" in said and "1 runs, without" in said
    assert "nvil on vae_categorical: 2 of 2 are missing" in said and not interrupt.asked()


@pytest.mark.parametrize(
    "name", ["demo/run/../../x.json", "/demo/run/result.json", "demo/run/claim", "demo/result.json"]
)
def test_only_records_are_unpacked(tmp_path, name):
    file = tmp_path / "a.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for each in ("demo/run/result.json", name):
            member = tarfile.TarInfo(each)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(DamagedRecord, match="is no file of a record; nothing was unpacked"):
        archive.unpack(file, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_links_and_torn_archives_are_refused(tmp_path):
    link, torn = tmp_path / "link.tar.gz", tmp_path / "torn.tar.gz"
    with tarfile.open(link, "w:gz") as tar:
        member = tarfile.TarInfo("demo/run/result.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    torn.write_bytes(link.read_bytes()[:40])
    files.write_atomically(tmp_path / "text.tar.gz", b"text")
    for each in (link, torn, tmp_path / "text.tar.gz"):
        with pytest.raises(DamagedRecord, match=each.name):
            archive.unpack(each, tmp_path / "there")


def test_an_archive_that_is_not_whole_is_refused(tmp_path):
    """Torn anywhere, or with a bit that flipped: never some of the runs without a word."""
    for seed in range(3):
        write_run(tmp_path / "demo", make_config(seed=seed))
    packed, broken = tmp_path / "packed.tar.gz", tmp_path / "broken.tar.gz"
    assert archive.pack([tmp_path / "demo"], packed) == 3
    whole = packed.read_bytes()
    plain, draw = gzip.decompress(whole), random.Random(0)
    header = plain.index(b"demo/", 512)  # of the second member: tarfile alone would take it for the end
    cases = [whole[:length] for length in draw.sample(range(len(whole)), 40)]
    cases += [_flipped(whole, draw.randrange(10, len(whole))) for _ in range(40)]
    cases += [gzip.compress(_flipped(plain, header))]
    for content in cases:
        broken.write_bytes(content)
        with pytest.raises(DamagedRecord, match="broken.tar.gz"):
            archive.unpack(broken, tmp_path / "there")
        assert not (tmp_path / "there").exists()
    assert archive.unpack(packed, tmp_path / "there") == 3


def _flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(("place", "reason"), [("", "Is a directory"), ("absent", "No such file or directory")])
def test_records_that_cannot_be_read_are_one_sentence(tmp_path, place, reason):
    with pytest.raises(UserError, match=rf"cannot be unpacked \({reason}\)"):
        paper.main(["--records", str(tmp_path / place)])


def test_bad_commands_are_one_sentence(command, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "run_sweep", lambda *_: pytest.fail("nothing is trained"))
    for place, reason in ((tmp_path, "Is a directory"), (tmp_path / "file/a.tar.gz", "Not a directory|File exists")):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=f"--archive {place} cannot be written .({reason})"):
            reference.main(["demo:full", "--archive", str(place)])
    with pytest.raises(UserError, match="Could not find 'experiment/nosuch'; choose one of"):
        command("nosuch")
    with pytest.raises(UserError, match="is asked for several steps"):
        command("demo:full", options=["steps=2,4"])
    with pytest.raises(UserError, match="at most 1,000,000, not inf"):
        command("demo:full", minutes="inf")
    with pytest.raises(UserError, match="--minutes must be positive"):
        command("demo:full", minutes="0")
    with pytest.raises(UserError, match="budget=medium: choose one of those that the experiment has"):
        command("demo")
    with pytest.raises(UserError, match="none of its runs makes sense with"):
        command("demo:full", options=["estimator=arm", "task=vae_categorical"])
