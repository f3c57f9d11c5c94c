"""The run record: the only file that knows how a run is stored on disk; it writes and reads the format.

A run is a directory ``runs/<sweep>/<run>/`` with

==================  ==================================================================================
``.hydra/``         ``config.yaml`` (this run's own resolved config) and ``overrides.yaml``
``run.json``        the options of the config by their roles, which tell what a column of a frame is
``status.json``     ``queued | running | finished | diverged | failed`` and, if failed, the error
``metrics.jsonl``   one row per evaluated step, appended and flushed as training goes
``basket.jsonl``    one row per estimator and step at which gradients were measured (with ``basket=``)
``images.npz``      reconstructions and decoded samples for the figures (optional)
``checkpoint.pt``   the training state, replaced atomically
``claim``           exists while a process trains the run (:mod:`analysis.records.claims`)
``loggers.json``    the ids under which loggers beside this record know the run (optional)
``log.txt``         when it started, stopped, went on, failed (with the traceback), for people
``result.json``     written last and atomically: a run with a result is finished, one without is not
``results/``        results that the run had before: of fewer steps, or evaluated otherwise
==================  ==================================================================================

A diverged run has a result too (with ``status: diverged``): it is over, and it is counted. A run is what trains: how
long, and how it is evaluated in the end, are a :class:`Target`, and a run may answer one after the other. A folder in
``results/`` holds what the run's own directory held then, without checkpoint. The sweep's folder may hold
``.frame.parquet``, from which its frame is loaded faster (:mod:`analysis.records.collect`); it is safe to delete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any

from analysis.defaults import complete
from analysis.records import legacy
from analysis.records.claims import Claim

CONFIG = Path(".hydra") / "config.yaml"
OVERRIDES = Path(".hydra") / "overrides.yaml"
FACTS, METRICS, BASKET, STATUS, RESULT = "run.json", "metrics.jsonl", "basket.jsonl", "status.json", "result.json"
IMAGES, CHECKPOINT, LOG, LOGGERS, OLDER = "images.npz", "checkpoint.pt", "log.txt", "loggers.json", "results"
REPLAYED = "basket.part.jsonl"
"""Rows of a basket that is added to a finished run, until all are there."""
COSTS = ("wall_seconds", "loss_evaluations", "peak_memory_bytes", "pack_replicas", "device", "commit", "diverged_at")
STATUSES = ("queued", "running", "finished", "diverged", "failed")


class DamagedRecord(ValueError):
    """A file of a run record that cannot be what this module wrote; the message names the file."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, such that a reader sees the old file or the new one and never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_json(content: dict[str, Any], **options: Any) -> bytes:
    return (json.dumps(content, **options) + "\n").encode()


@dataclass(frozen=True)
class Target:
    """What is asked of a run besides its training: how many steps, and what is measured.

    Attributes:
        steps: it is trained so far.
        evaluation: the options of the evaluation at the end, with dots.
        basket: the options of what is measured on the way (``basket=``); empty for nothing.
    """

    steps: int
    evaluation: dict[str, Any] = field(default_factory=dict)
    basket: dict[str, Any] = field(default_factory=dict)

    def is_answered_by(self, result: dict[str, Any]) -> bool:
        """Whether a result is what is asked for, the basket aside. A run that diverged in these steps is over."""
        if result["status"] == "diverged":
            return int(result.get("diverged_at") or 0) <= self.steps
        return result.get("step") == self.steps and result.get("evaluation", {}) == self.evaluation


class RunRecord:
    """Writes the record of one run. ``path`` is the run's directory; it is created by ``claim.take()``."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.claim = Claim(self.path)

    @property
    def name(self) -> str:
        """The run's; of one of its older results, too."""
        return self.path.parents[1].name if self.path.parent.name == OLDER else self.path.name

    def result(self) -> dict[str, Any] | None:
        """The result, or ``None`` if the run is not over.

        Raises:
            DamagedRecord: if there is a result that cannot be trusted: not readable, another run's, or its config or
                metrics are not what they were when it was written.
        """
        try:
            result = _read_json(self.path / RESULT)
        except FileNotFoundError:
            return None
        if result.get("run") != self.name:
            raise DamagedRecord(f"{self.path / RESULT}: is the result of run {result.get('run')!r}")
        if result.get("status") not in ("finished", "diverged"):
            raise DamagedRecord(f"{self.path / RESULT}: has no status that this module writes")
        if "seals" in result:
            now, then = self._seals(), result["seals"]
            if changed := [name for name in {**now, **then} if name in then and now.get(name) != then[name]]:
                raise DamagedRecord(f"{self.path / changed[0]}: was changed after the run")
        return result

    def outcome(self) -> str | None:
        """``finished`` or ``diverged`` if the run is over, else ``None``. Raises as :meth:`result`."""
        result = self.result()
        return None if result is None else str(result["status"])

    def answer(self, target: Target) -> str | None:
        """As :meth:`outcome`, of the result that is what ``target`` asks for: the run's own, or an older one.

        A finished run whose result is of more steps, and that has no older one of so many, can no longer answer: then
        it is ``passed``. Raises as :meth:`result`.
        """
        result = self.result()
        if result and target.is_answered_by(result):
            measured = result["status"] != "finished" or not target.basket or result.get("basket") == target.basket
            return str(result["status"]) if measured else None
        for folder in older_results(self.path):
            older = RunRecord(folder).result()
            if older and target.is_answered_by(older):
                return str(older["status"])
        return "passed" if result and result["status"] == "finished" and result["step"] > target.steps else None

    def is_finished(self) -> bool:
        """Whether a trustworthy result is there (finished or diverged)."""
        try:
            return self.outcome() is not None
        except DamagedRecord:
            return False

    def status_word(self) -> str:
        """The status word on disk; ``queued`` if there is none that can be read."""
        try:
            word = _read_json(self.path / STATUS).get("status")
        except (FileNotFoundError, DamagedRecord):
            return "queued"
        return word if word in STATUSES else "queued"

    def error(self) -> str | None:
        """Why the run diverged or failed, in words."""
        for file, key in ((RESULT, "divergence"), (STATUS, "error")):
            try:
                if text := _read_json(self.path / file).get(key):
                    return str(text)
            except (FileNotFoundError, DamagedRecord):
                continue
        return None

    def start(
        self,
        config_yaml: str,
        overrides: list[str],
        facts: dict[str, Any] | None = None,
        keep_until: int = 0,
        last_row: dict[str, Any] | EllipsisType | None = ...,
    ) -> None:
        """Begin, or go on with ``keep_until``: write the config, drop the rows after that step.

        Args:
            config_yaml: the run's config.
            overrides: what gave it this config, as on the command line.
            facts: the content of ``run.json`` (:func:`training.config.identity.facts`).
            keep_until: the step of the checkpoint.
            last_row: the row of that step as it was before a last evaluation added to it, or ``None`` for none; by
                default what stands there.
        """
        (self.path / CONFIG).parent.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, OVERRIDES, FACTS, METRICS, BASKET, STATUS, CHECKPOINT, IMAGES, RESULT, LOGGERS):
            for left_behind in (self.path / name).parent.glob(f".{Path(name).name}.*.tmp"):  # by a killed process
                left_behind.unlink(missing_ok=True)
        self._set_aside()
        write_atomically(self.path / CONFIG, config_yaml.encode())
        write_atomically(self.path / OVERRIDES, "".join(f"- {json.dumps(line)}\n" for line in overrides).encode())
        if facts is not None:
            write_atomically(self.path / FACTS, _to_json({"run": self.name, **facts}))
        rows = [row for row in read_metrics(self.path / METRICS) if row["step"] <= keep_until] if keep_until else []
        if not isinstance(last_row, EllipsisType):
            rows = [row for row in rows if row["step"] < keep_until] + ([last_row] if last_row else [])
        write_atomically(self.path / METRICS, b"".join(_to_json(row) for row in rows))
        if (self.path / BASKET).exists():
            kind = (facts or {}).get("basket")  # where none is asked for, what was measured stays
            kept = (row for row in self.basket() if not kind or row.get("kind") == kind)
            rows = [row for row in kept if row["step"] <= keep_until]
            write_atomically(self.path / BASKET, b"".join(_to_json(row) for row in rows))
        self.status("running")

    def _set_aside(self) -> None:
        """Keep the run's result, if it has a sound one, among the older ones."""
        try:
            result = self.result()
        except DamagedRecord:
            result = None
        if result is not None:
            kind = hashlib.sha256(json.dumps(result.get("evaluation", {}), sort_keys=True).encode()).hexdigest()[:8]
            folder = self.path / OLDER / f"{result.get('step', 0)}-{kind}"
            unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
            files: tuple[str | Path, ...] = (CONFIG, OVERRIDES, FACTS, METRICS, BASKET, IMAGES, RESULT)
            for name in files:
                if (self.path / name).exists():
                    (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.path / name, unfinished / name)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)
        (self.path / RESULT).unlink(missing_ok=True)

    def append(self, row: dict[str, Any], file: str = METRICS) -> None:
        """Add one evaluated step (or to ``BASKET`` one estimator at one); flushed, so that it survives a kill."""
        with open(self.path / file, "ab") as rows:
            rows.write(_to_json(row))

    def append_last(self, row: dict[str, Any]) -> None:
        """Add the row of the last step, in the place of one that stands there for this step already."""
        rows = [earlier for earlier in read_metrics(self.path / METRICS) if earlier["step"] < row["step"]]
        write_atomically(self.path / METRICS, b"".join(_to_json(each) for each in [*rows, row]))

    def basket(self, file: str = BASKET) -> list[dict[str, Any]]:
        """The gradients that were measured, by step and estimator."""
        return read_rows(self.path / file, "measured")

    def rows_at(self, step: int) -> int:
        """The rows of metrics that a checkpoint of ``step`` relies on: those of earlier steps; its own it holds itself.

        Those of a basket do not count: what is missing of them is measured again.
        """
        return sum(row["step"] < step for row in read_metrics(self.path / METRICS))

    def status(self, status: str, **details: Any) -> None:
        """Write the status word, with details such as ``error``."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
        write_atomically(self.path / STATUS, _to_json({"status": status, "time": time.time(), **details}))

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, last; ``result["status"]`` is ``finished`` or ``diverged``."""
        self.status(result["status"])
        sealed = {**result, "run": self.name, "seals": self._seals()}
        write_atomically(self.path / RESULT, _to_json(sealed, indent=2))

    def add_basket(self, options: dict[str, Any]) -> None:
        """Put the rows of ``REPLAYED`` in the place of the basket's, and into the finished run's result."""
        result = self.result()
        assert result is not None and result["status"] == "finished"
        (self.path / REPLAYED).touch()  # nothing could be measured
        os.replace(self.path / REPLAYED, self.path / BASKET)
        self.finish({**result, "basket": options})

    def _seals(self) -> dict[str, Any]:
        """What tells whether other files were changed since: a hash of the config, the size of the metrics."""
        try:
            hashed: list[str | Path] = [CONFIG, FACTS] if (self.path / FACTS).exists() else [CONFIG]
            digests = {str(name): hashlib.sha256((self.path / name).read_bytes()).hexdigest() for name in hashed}
            files = [METRICS, BASKET] if (self.path / BASKET).exists() else [METRICS]
            return {**digests, **{name: (self.path / name).stat().st_size for name in files}}
        except OSError as error:
            return {str(Path(str(error.filename)).relative_to(self.path)): "missing"}

    def known_as(self, logger: str, new: str) -> str:
        """The id under which ``logger`` knows the run: the first that was kept; ``new`` if there is none."""
        try:
            known = _read_json(self.path / LOGGERS)
        except (FileNotFoundError, DamagedRecord):
            known = {}
        if logger not in known:
            write_atomically(self.path / LOGGERS, _to_json(known | {logger: new}))
        return str(known.get(logger, new))

    def log(self, text: str) -> None:
        """Add a line (or a traceback) to the run's log, with the time."""
        with open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedRecord(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise DamagedRecord(f"{path}: expected a JSON object")
    return content


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file by step. A torn last line is a kill's trace and skipped; other damage raises."""
    return read_rows(path)


def read_rows(path: Path, *keys: str) -> list[dict[str, Any]]:
    """As :func:`read_metrics`, of a file whose rows are told apart by their step and ``keys``."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DamagedRecord(f"{path}: not readable ({error})") from None
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
            if step.bit_length() > 63:
                raise OverflowError
            key = (step, *(row[name] for name in keys))
            rows[key] = {**row, "step": step}  # of a key that stands twice the later row counts
        except (ValueError, KeyError, TypeError, OverflowError):
            if number == len(lines):
                continue
            raise DamagedRecord(f"{path}: line {number} is not a row of metrics") from None
    return [rows[key] for key in sorted(rows)]


def find_runs(path: Path) -> list[Path]:
    """The run directories at or below ``path`` (a run, a sweep, or a folder of sweeps), sorted.

    A directory with a result but without a config is one too, so that its reader can say that it is damaged.
    """
    level, runs = [Path(path)], []
    for _ in range(3):
        found = {folder for folder in level if any(os.path.exists(f"{folder}/{name}") for name in (CONFIG, RESULT))}
        runs += sorted(found)
        level = [child for folder in level if folder not in found for child in _folders(folder)]
    return runs


def older_results(run: Path) -> list[Path]:
    """The folders of the results that a run had before, by name."""
    return [folder for folder in _folders(Path(run) / OLDER) if not folder.name.startswith(".")]


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [path / name for name in sorted(entry.name for entry in entries if entry.is_dir())]
    except OSError:  # not there, not a folder, or not ours to look into
        return []


def read_facts(path: Path, result: dict[str, Any] | None) -> dict[str, Any]:
    """What ``run.json`` says; of a run of older code the same, as far as its config tells (:mod:`.legacy`).

    Options that are younger than the record stand there at their defaults.
    """
    try:
        found = _read_json(path / FACTS)
    except FileNotFoundError:
        return legacy.facts(complete(_read_config(path, result)))
    options = found.get("options")
    if not isinstance(options, dict) or not all(isinstance(each, dict) for each in options.values()):
        raise DamagedRecord(f"{path / FACTS}: does not say what the options of a run are")
    known = {name: value for each in options.values() for name, value in each.items()}
    for name, value in legacy.leaves(complete(legacy.nested(known))):
        if name not in known and not name.startswith("basket."):
            options.setdefault(legacy.role_of(name), {})[name] = value
    return found


def _identity(facts: dict[str, Any]) -> str:
    """The same for runs that train alike, whatever code recorded them."""
    return hashlib.sha256(json.dumps(facts["options"].get("trains", {}), sort_keys=True).encode()).hexdigest()[:16]


def read_constants(path: Path) -> tuple[dict[str, Any], dict[str, Any], int | None]:
    """What is constant over one run (options, status, protocol, costs) as a flat dict; the run's facts; of a finished
    run its last step.

    It is read before the metrics: where there is a result, they are complete.
    """
    record = RunRecord(path)
    result = record.result()
    facts = read_facts(path, result)
    options = {name: value for each in facts["options"].values() for name, value in each.items()}
    constants = {**columns(options), "run": record.name, "identity": _identity(facts)}
    constants["family"] = facts.get("family")
    if primary := facts.get("primary"):
        constants["primary"] = primary["metric"]
        constants["primary_sign"] = 1 if primary["higher_is_better"] else -1
    if result is None:
        try:
            status = _read_json(path / STATUS)
        except FileNotFoundError:
            status = {"status": "queued"}
        # A kill between the last status and the result leaves "finished" without a result: the run is not over.
        word = status.get("status")
        constants["status"] = word if word in ("queued", "running", "failed") else "running"
        constants["error"] = status.get("error")
        return constants, facts, None
    if not isinstance(result.get("protocol", {}), dict):
        raise DamagedRecord(f"{path / RESULT}: has no protocol that this module writes")
    constants["status"] = result["status"]
    for key, value in legacy.protocol(result.get("protocol", {})).items():
        constants[f"protocol.{key}"] = value
    for key in COSTS:
        constants[key] = result.get(key)
    return constants, facts, result.get("step", -1) if result["status"] == "finished" else None


def column_of(option: str) -> str:
    """The column of an option: a group with a name stands for itself."""
    return option.removesuffix(".name")


def columns(options: dict[str, Any]) -> dict[str, Any]:
    """Options with dots as the columns of a frame; a list is JSON text."""
    return {
        column_of(name): json.dumps(value) if isinstance(value, (list, dict)) else value
        for name, value in options.items()
    }


def read_overrides(path: Path) -> list[str]:
    """The overrides that gave a run its config, as on the command line. Raises :class:`DamagedRecord`."""
    import yaml

    try:
        return [str(line) for line in yaml.safe_load((path / OVERRIDES).read_bytes())]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise DamagedRecord(f"{path / OVERRIDES}: not a run's overrides ({type(error).__name__}: {error})") from None


def _read_config(path: Path, result: dict[str, Any] | None) -> dict[str, Any]:
    """The run's config. Where there is a result, its own copy is taken: JSON is read far faster."""
    import yaml

    if result is not None and isinstance(result.get("config"), dict):
        return dict(result["config"])
    try:
        config = yaml.load((path / CONFIG).read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return {**config, **{group: config[group] for group in ("estimator", "task", "data")}}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise DamagedRecord(f"{path / CONFIG}: not a run's config ({type(error).__name__}: {error})") from None


def flat_config(config: dict[str, Any]) -> dict[str, Any]:
    """``{"optimizer": {"lr": .1}}`` -> ``{"optimizer.lr": .1}``; a group with a name stands for itself."""
    return columns(dict(legacy.leaves(config)))
