"""Records that are damaged, or that want to harm: each is named, none is executed, none is silent, none costs others.

A table of faults, a copy of one sound run each. All are read in one process with a bounded memory, in which a sound run
beside them keeps its numbers.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_config, seal_again, write_run

from analysis import records, verify
from analysis.records import BASKET, CHECKPOINT, CONFIG, FACTS, IMAGES, METRICS, RESULT, STATUS, RunRecord, load
from analysis.records.images import read_images
from training import status
from training.pack import checkpoints

ROOT = Path(__file__).resolve().parents[1]
DEEP = b"[" * 200_000 + b"]" * 200_000
HUGE = 20 << 30


def write(name, content):
    return lambda run: (run / name).write_bytes(content)


def edit(name, old, new):
    def change(run):
        content = (run / name).read_bytes()
        assert old in content
        (run / name).write_bytes(content.replace(old, new, 1))

    return change


def remove(name):
    return lambda run: (run / name).unlink()


def replace(name, make):
    def change(run):
        (run / name).unlink()
        make(run / name)

    return change


def sparse(name, size=HUGE):
    """A file of zeros that takes no place."""
    return replace(name, lambda file: (file.touch(), os.truncate(file, size)))


def unfinished(*changes):
    """An unfinished run: what its files say is not sealed yet."""

    def change(run):
        (run / RESULT).unlink()
        (run / STATUS).write_text('{"status": "running"}')
        for each in changes:
            each(run)

    return change


def resealed(*changes):
    """Changed by somebody who seals it again."""

    def change(run):
        for each in changes:
            each(run)
        seal_again(run)

    return change


def without_facts(content):
    return unfinished(remove(FACTS), write(CONFIG, content))


def aliases():
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30)]
    return b"estimator: {name: a}\ntask: {name: b}\ndata: {name: c}\n" + b"\n".join(lines)


def pictures(shape, kind="<f8", body=b"", version=(1, 0), names=("samples",)):
    def make(run):
        header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
        array = b"\x93NUMPY" + bytes(version) + len(header).to_bytes(2, "little") + header + body
        with zipfile.ZipFile(run / IMAGES, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(f"{name}.npy", array)

    return make


def numbers_of_zeros(run):
    """8 GB of zeros in a few MB."""
    with (
        zipfile.ZipFile(run / IMAGES, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("samples.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 17, 256, 256)}
        )
        for _ in range(1 << 9):
            file.write(bytes(1 << 16))


def objects(run):
    np.savez(run / IMAGES, samples=np.array([Executed()], dtype=object))


class Executed:
    def __reduce__(self):
        return open, (os.environ.get("EXECUTED", "executed"), "w")


def compressed_checkpoint(run):
    with zipfile.ZipFile(run / CHECKPOINT, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 27))


def loops(name):
    return replace(name, lambda file: file.symlink_to(file))


def folder(name):
    return replace(name, lambda file: file.mkdir())


def pipe(name):
    return replace(name, os.mkfifo)


def link(name, target):
    return replace(name, lambda file: file.symlink_to(target))


def rows(*lines):
    return unfinished(write(METRICS, b"".join(line + b"\n" for line in lines)))


LAST = b'{"step": 2000}'
FAULTS = {
    # what is edited, and what is torn
    "an edited row": edit(METRICS, b"-104.0", b"-103.0"),
    "a row less": lambda run: (run / METRICS).write_bytes(b"".join((run / METRICS).open("rb").readlines()[1:])),
    "a row more": lambda run: (run / METRICS).open("ab").write(b'{"step": 5000, "test_bound": 0}\n'),
    "rows torn": lambda run: os.truncate(run / METRICS, 300),
    "an edited status": edit(RESULT, b'"finished"', b'"diverged"'),
    "an edited protocol": edit(RESULT, b'"uniform"', b'"learned"'),
    "an edited cost": edit(RESULT, b'"wall_seconds": 1.0', b'"wall_seconds": 0.1'),
    "an edited step": edit(RESULT, b'"step": 1000', b'"step": 9000'),
    "an edited config": edit(CONFIG, b"lr: 0.001", b"lr: 0.002"),
    "edited facts": edit(FACTS, b'"optimizer.lr": 0.001', b'"optimizer.lr": 0.002'),
    "an edited picture": lambda run: (run / IMAGES).write_bytes((run / IMAGES).read_bytes()[:-1] + b"!"),
    "an added basket": write(BASKET, b'{"step": 1, "measured": "nvil", "variance": 0}\n'),
    "an added checkpoint": write(CHECKPOINT, b"a checkpoint"),
    "another run's result": edit(RESULT, b"-s0-", b"-s7-"),
    "another version's seal": edit(RESULT, b'"version": 2', b'"version": 9'),
    "a seal of another type": edit(RESULT, b'"seals": {', b'"seals": [], "x": {'),
    # what is missing
    "no config": remove(CONFIG),
    "no rows": remove(METRICS),
    "no facts": remove(FACTS),
    "nothing but rows": unfinished(remove(CONFIG), remove(FACTS), remove(STATUS)),
    "nothing but a status": unfinished(remove(CONFIG), remove(FACTS), remove(METRICS)),
    # results
    "an empty result": write(RESULT, b""),
    "a torn result": lambda run: os.truncate(run / RESULT, 100),
    "a result of bytes": write(RESULT, b"\xff\xfe\x00"),
    "a result that is a list": write(RESULT, b"[1]"),
    "a result nested too deep": write(RESULT, b'{"run": ' + DEEP + b"}"),
    "a result of 20 GB": sparse(RESULT),
    "a name that stands twice": edit(RESULT, b'"status"', b'"status": "diverged", "status"'),
    "a number of 100,000 digits": write(RESULT, b'{"run": ' + b"9" * 100_000 + b"}"),
    # other types
    "a pipe for a result": pipe(RESULT),
    "a pipe for rows": pipe(METRICS),
    "a pipe for rows under way": unfinished(pipe(METRICS)),
    "a pipe for a status": unfinished(pipe(STATUS)),
    "a pipe for a config": pipe(CONFIG),
    "a pipe for pictures": pipe(IMAGES),
    "a folder for a result": folder(RESULT),
    "a folder for rows": unfinished(folder(METRICS)),
    "a folder for facts": folder(FACTS),
    "a link to itself for a result": loops(RESULT),
    "a link to itself for rows": unfinished(loops(METRICS)),
    "a link to endless zeros": link(METRICS, "/dev/zero"),
    "a link to a device under way": unfinished(link(METRICS, "/dev/zero")),
    "a link to a file elsewhere": link(METRICS, "/etc/passwd"),
    "a file for the folder of the config": lambda run: (shutil.rmtree(run / ".hydra"), (run / ".hydra").touch()),
    # rows under way
    "a row that is no JSON": rows(b'{"step": 1}', b"garbage", LAST),
    "a row that is a list": rows(b'{"step": 1}', b"[1]", LAST),
    "a row without a step": rows(b'{"loss": 1}', LAST),
    "an infinite step": rows(b'{"step": Infinity}', LAST),
    "a step that is no number": rows(b'{"step": "one"}', LAST),
    "a step beyond 64 bits": rows(b'{"step": 9223372036854775808}', LAST),
    "a metric that stands twice": rows(b'{"step": 1, "valid_bound": -9, "valid_bound": -1}', LAST),
    "a row nested too deep": rows(b'{"step": 1, "a": ' + DEEP + b"}", LAST),
    "a row of 10 MB": rows(b'{"step": 1, "a": "' + b"x" * 10_000_000 + b'"}', LAST),
    "many lists": rows(*[b'{"step": 1, "a": [' + b"[]," * 9_000 + b"[]]}"] * 40),
    "many texts": rows(*[b'{"step": 1, "a": [' + b'"ab",' * 9_000 + b"1]}"] * 40),
    "rows that are not UTF-8": rows(b'{"step": 1, "\xff": 1}', LAST),
    "rows of 20 GB": unfinished(sparse(METRICS)),
    "nothing but ends of lines": rows(b"\n" * 20_000_000),
    # configs of runs without facts, which older code wrote
    "a config with aliases of aliases": without_facts(aliases()),
    "a config in itself": without_facts(b"estimator: &a {name: n, b: *a}\ntask: {}\ndata: {}\n"),
    "a config nested too deep": without_facts(DEEP),
    "a config of nested dashes": without_facts(b"- " * 100_000),
    "a config that calls": without_facts(b"!!python/object/apply:os.system ['touch executed']"),
    "a config that is a text": without_facts(b"hello"),
    "a config of another thing": without_facts(b"hello: 1"),
    "a config with an option twice": without_facts(b"estimator: {name: a, name: b}\ntask: {}\n"),
    "a config of 20 GB": unfinished(remove(FACTS), sparse(CONFIG)),
    "facts of another type": unfinished(write(FACTS, b'{"options": [1]}')),
    "facts nested too deep": unfinished(write(FACTS, DEEP)),
    # pictures, of a result that seals them
    "pictures of 20 GB": resealed(pictures((1, 50_000, 50_000))),
    "pictures of 2^90 numbers": resealed(pictures((1 << 30, 1 << 30, 1 << 30))),
    "pictures of 8 GB of zeros": resealed(numbers_of_zeros),
    "pictures that are objects": resealed(objects),
    "a picture without width": resealed(pictures((5, 3, 0))),
    "pictures with another header": resealed(pictures("open('executed', 'w')")),
    "pictures that are garbage": resealed(write(IMAGES, b"PK\x03\x04garbage")),
    # checkpoints, of a result that seals them
    "a checkpoint with code in it": resealed(lambda run: (run / CHECKPOINT).write_bytes(pickle.dumps(Executed()))),
    "a checkpoint that is compressed": resealed(compressed_checkpoint),
    "a checkpoint of 20 GB": lambda run: ((run / CHECKPOINT).touch(), sparse(CHECKPOINT)(run)),
    "a pipe for a checkpoint": lambda run: os.mkfifo(run / CHECKPOINT),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The runs of a sweep with a fault each, by the names of the faults, and a sound one, ``sound``."""
    root = tmp_path_factory.mktemp("hostile")
    sound = write_run(root / "sound", make_config(seed=0), images=True)
    places = {"sound": sound}
    for number, (name, fault) in enumerate(FAULTS.items()):
        run = root / f"sweep{number}" / sound.name
        shutil.copytree(sound, run)
        fault(run)
        places[name] = run
    return root, places


def test_there_are_many():
    assert len(FAULTS) >= 60


@pytest.fixture(scope="module")
def said(hostile):
    """What a process with 3 GB of data says of each run: of the frame, of pictures and of checkpoints, with seconds."""
    root, places = hostile
    asked = root / "asked.json"
    asked.write_text(json.dumps({name: str(path) for name, path in places.items()}))
    done = subprocess.run(
        [sys.executable, __file__, asked],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_within_bounds(hostile, said, name):
    root, places = hostile
    own = said[name]
    kinds = [own["frame"], own["pictures"], own["checkpoint"]]
    assert any(kinds), f"silent: {own}"
    for sentence in filter(None, kinds):
        assert str(places[name]) in sentence and "\n" not in sentence and len(sentence) < 1000
    assert own["seconds"] < 10
    sealed_so = name.startswith(("pictures", "a picture", "a checkpoint")) and own["verify"] == "sound"
    assert own["verify"] in ("changed", "unreadable", "foreign") or sealed_so


def test_nothing_was_executed_and_memory_was_bounded(hostile, said):
    root, _ = hostile
    assert not list(root.rglob("executed")) and not (ROOT / "executed").exists()
    assert said["sound"] | {"seconds": 0} == {
        **{"frame": None, "pictures": None, "checkpoint": None, "verify": "sound", "seconds": 0},
        "peak": said["sound"]["peak"],
    }
    assert max(own["peak"] for own in said.values()) - said["sound"]["peak"] < 1000


def test_the_sound_run_is_read_beside_all_of_them(hostile):
    root, places = hostile
    with pytest.warns(UserWarning):
        frame = load(root)
    assert places["sound"] in set(map(Path, frame["path"])) and len(frame.attrs["damaged"]) > 50
    assert str(places["a pipe for rows"]) in status.report(places["a pipe for rows"])


def _examine(run):
    """In the bounded process: what each reader says of ``run``."""
    began = time.perf_counter()
    found = {}
    for what, reader in (("frame", _frame), ("pictures", read_images), ("checkpoint", _checkpoint)):
        try:
            found[what] = reader(run) if what != "pictures" else reader(run) and None
        except records.DamagedRecord as error:
            found[what] = str(error)
    found["verify"] = verify.record(run)[0]
    RunRecord(run).error()
    found["seconds"] = time.perf_counter() - began
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def _frame(run):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(run)
    return " ".join(str(warning.message) for warning in caught) or None


def _checkpoint(run):
    return checkpoints.load(RunRecord(run))[1]


if __name__ == "__main__":
    asked = {name: Path(path) for name, path in json.loads(Path(sys.argv[1]).read_bytes()).items()}
    _examine(asked["sound"])
    resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
    print(json.dumps({name: _examine(path) for name, path in asked.items()}))
