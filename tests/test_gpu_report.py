"""What ``make gpu`` does, on a CPU and in small: every part gives rows, and one that fails costs no other part."""

import json

import pytest
import torch

from training.benchmarks import gpu
from training.processes import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "SECONDS", 0.01)
    monkeypatch.setattr(gpu, "PROFILED", (False,))
    monkeypatch.setattr(gpu, "ESTIMATORS", ("gumbel_softmax",))
    monkeypatch.setattr(gpu, "TOGETHER", (1, 2))
    monkeypatch.setattr(gpu, "STEPS", 3)
    monkeypatch.setattr(gpu, "cases", lambda: [("vae_bernoulli", "nvil", 2, False, False)] * 2)
    monkeypatch.setattr(gpu, "in_turns", lambda functions, seconds, calls=1: _once(functions))
    monkeypatch.setattr(gpu, "MODELS", {"784-200-784": gpu.MODELS["784-200-784"]})
    return tmp_path / "gpu"


def _once(functions):
    for function in functions.values():
        function()
    return dict.fromkeys(functions, 1e-3)


def test_every_part_is_written(small, monkeypatch):
    report = gpu.measure(CPU, 1000.0, small, ["rates", "speeds", "together", "kernels", "bounds"])
    assert report["noise_without_a_kernel"] == ""
    assert json.loads((small / "gpu.json").read_text()) == report
    parts = report["parts"]
    assert all(part["rows"] and not part["error"] for part in parts.values())
    (speed, _) = parts["speeds"]["rows"]
    assert speed["replica_steps_per_second"] == 16_000 and speed["not_compiled"] == "compile=false"
    assert parts["kernels"]["rows"][-1]["calls_per_step"] > 20
    assert parts["together"]["rows"][0]["largest_difference"] < 1e-5
    assert report["not_reached"] == ["a_sweep", "killed", "tests"]
    page = (small / "gpu.md").read_text()
    assert "| vae_bernoulli | nvil | 2 |" in page and "Not reached: a_sweep, killed, tests." in page


def test_a_part_that_fails_costs_no_other(small, monkeypatch, capsys):
    def broken(device):
        def part(deadline):
            yield {"what": "before"}
            raise RuntimeError("no kernel image")

        return part

    broken.__doc__ = "Broken."
    monkeypatch.setattr(gpu, "rates", broken)
    report = gpu.measure(CPU, 1000.0, small, ["rates", "together"])
    assert report["parts"]["rates"]["error"] == "RuntimeError: no kernel image"
    assert report["parts"]["rates"]["rows"] == [{"what": "before"}] and report["parts"]["together"]["rows"]
    assert "**failed**: RuntimeError: no kernel image" in (small / "gpu.md").read_text()


def test_a_line_that_fails_costs_no_other(small, monkeypatch):
    speed, tried = gpu._speed, []

    def broken(*case):
        tried.append(case)
        if len(tried) == 1:
            raise RuntimeError("no kernel image")
        return speed(*case)

    monkeypatch.setattr(gpu, "_speed", broken)
    first, second = gpu.measure(CPU, 1000.0, small, ["speeds"])["parts"]["speeds"]["rows"]
    assert first["error"] == "RuntimeError: no kernel image" and first["estimator"] == "nvil"
    assert second["replica_steps_per_second"] > 0 and "share_of_bytes" not in second


def test_nothing_begins_after_the_end(small):
    report = gpu.measure(CPU, 0.0, small, ["rates", "together"])
    assert not any(part["rows"] for part in report["parts"].values())


def test_commands_have_their_time(monkeypatch):
    row = gpu._called([gpu.sys.executable, "-c", "print('one'); raise SystemExit(3)"], gpu.Deadline(60))
    assert row["exit_code"] == "3" and row["output"] == "one"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    row = gpu._called([gpu.sys.executable, "-c", parent], gpu.Deadline(0.0))
    assert row["exit_code"] == "out of time" and row["seconds"] < 30


def test_the_cases_are_each_once_and_the_tests_are_there():
    cases = gpu.cases()
    assert len(cases) == len(set(cases)) and cases[0] == ("vae_bernoulli", "gumbel_softmax", 256, False, True)
    assert {case[2] for case in cases} == {1, 8, 64, 256, 1024} and {case[0] for case in cases} > set(gpu.TASKS)
    assert all((ROOT / file).exists() for file in gpu.TESTS)
