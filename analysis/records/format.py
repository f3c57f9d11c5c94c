"""The run record: the only file that knows how a run is stored on disk; it writes and reads the format.

A run is a directory ``runs/<sweep>/<run>/`` with

==================  ==================================================================================
``.hydra/``         ``config.yaml`` (this run's own resolved config) and ``overrides.yaml``
``run.json``        the options of the config by their roles, which tell what a column of a frame is
``status.json``     a word of :data:`STATUSES` and, if ``failed``, the error
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

A diverged run has a result too (with ``status: diverged``): it is over, and it is counted. In a race
(:mod:`training.config.race`) a run is ``waiting`` at a rung for the others, and ``eliminated`` if its setting is; then
its result seals what it has, and goes where the run is trained further. A run is what trains: how
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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any

from analysis.defaults import complete
from analysis.records import files, legacy, seals
from analysis.records.claims import Claim
from analysis.records.files import DamagedRecord, ForeignRecord, UnreadableRecord, write_atomically

CONFIG = Path(".hydra") / "config.yaml"
OVERRIDES = Path(".hydra") / "overrides.yaml"
FACTS, METRICS, BASKET, STATUS, RESULT = "run.json", "metrics.jsonl", "basket.jsonl", "status.json", "result.json"
IMAGES, CHECKPOINT, LOG, LOGGERS, OLDER = "images.npz", "checkpoint.pt", "log.txt", "loggers.json", "results"
REPLAYED = "basket.part.jsonl"
"""Rows of a basket that is added to a finished run, until all are there."""
COSTS = ("wall_seconds", "loss_evaluations", "peak_memory_bytes", "pack_replicas", "device", "commit", "diverged_at")
MOST_ROWS, LINE, NESTED, TEXTS = 500_000, 1 << 16, 1 << 16, 256
"""Of a file of rows the most rows, bytes of a row, lists and objects within all rows, quotation marks per row: parsed,
what holds more of them takes twenty times its place."""
OVER = ("finished", "diverged", "eliminated")
"""The statuses of a result."""
STATUSES = ("queued", "running", "waiting", *OVER, "failed")
SEALED = {str(CONFIG): files.CONFIG, FACTS: files.DOCUMENT, METRICS: files.ROWS, BASKET: files.ROWS}
"""What every reader of a result checks (:mod:`analysis.records.seals`), and the most bytes that are read of each."""
BESIDE = {IMAGES: 64 * files.MEGABYTE, CHECKPOINT: 8192 * files.MEGABYTE}
"""What is checked where it is read, and by ``python -m analysis.verify``; it may be left out of an archive."""


def _to_json(content: dict[str, Any], **options: Any) -> bytes:
    return (json.dumps(content, **options) + "\n").encode()


@dataclass(frozen=True)
class Target:
    """What is asked of a run besides its training: how many steps, and what is measured.

    Attributes:
        steps: it is trained so far.
        evaluation: the options of the evaluation at the end, with dots.
        basket: the options of what is measured on the way (``basket=``); empty for nothing.
        until: a step before the last at which it waits, measured on validation; 0: none.
    """

    steps: int
    evaluation: dict[str, Any] = field(default_factory=dict)
    basket: dict[str, Any] = field(default_factory=dict)
    until: int = 0

    def is_answered_by(self, result: dict[str, Any]) -> bool:
        """Whether a result is what is asked for, the basket aside. A run that diverged in these steps is over,
        and one that was eliminated is not: it is not asked as long as it is."""
        if result["status"] == "diverged":
            return int(result.get("diverged_at") or 0) <= self.steps
        return (
            result["status"] == "finished"
            and result.get("step") == self.steps
            and result.get("evaluation", {}) == self.evaluation
        )


class RunRecord:
    """Writes the record of one run. ``path`` is the run's directory; it is created by ``claim.take()``."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.claim = Claim(self.path)

    @property
    def name(self) -> str:
        """The run's; of one of its older results, too."""
        return self.path.parents[1].name if self.path.parent.name == OLDER else self.path.name

    def result(self, contents: dict[str, bytes] | None = None) -> dict[str, Any] | None:
        """The result, or ``None`` if the run is not over. Its seals are checked but those of :data:`BESIDE`.

        Args:
            contents: gets the files that were read for that, by name.

        Raises:
            UnreadableRecord: if there is a result that cannot be read.
            ForeignRecord: if newer code wrote it.
            DamagedRecord: if it cannot be trusted: another run's, or it, its config or its rows are not what they were
                when it was written. The message names the first of these.
        """
        while True:
            try:
                content = files.read(self.path / RESULT)
            except FileNotFoundError:
                return None
            result = self._parsed(content)
            changed = seals.differences(self.path, result, SEALED, contents)
            if not changed:
                return result
            with suppress(FileNotFoundError):
                if files.read(self.path / RESULT) == content:
                    raise changed[0]
            # The run went on in between: what was compared belongs to two results.

    def _parsed(self, content: bytes) -> dict[str, Any]:
        result = files.parse_json(self.path / RESULT, content)
        if result.get("run") != self.name:
            raise DamagedRecord(f"{self.path / RESULT}: is the result of run {result.get('run')!r}")
        if result.get("status") not in OVER:
            raise DamagedRecord(f"{self.path / RESULT}: has no status that this module writes")
        try:
            seals.kind(result)
        except ForeignRecord as error:
            raise ForeignRecord(f"{self.path / RESULT}: {error}") from None
        return result

    def differences(self, *names: str) -> list[DamagedRecord]:
        """All that is not as the result sealed it, of the files ``names``; by default of every file of the record.

        A file of :data:`BESIDE` that was removed is no difference. Empty without a result.

        Raises:
            DamagedRecord: as :meth:`result`, if the result itself is not one.
        """
        try:
            result = self._parsed(files.read(self.path / RESULT))
        except FileNotFoundError:
            return []
        limits = SEALED | {name: limit for name, limit in BESIDE.items() if os.path.lexists(self.path / name)}
        chosen = {name: limit for name, limit in limits.items() if not names or name in names}
        return seals.differences(self.path, result, chosen)

    def outcome(self) -> str | None:
        """A word of :data:`OVER` if the run is over, else ``None``. Raises as :meth:`result`."""
        result = self.result()
        return None if result is None else str(result["status"])

    def answer(self, target: Target) -> str | None:
        """As :meth:`outcome`, of the result that is what ``target`` asks for: the run's own, or an older one. It is
        ``waiting`` for a run without one that was measured at ``target.until``.

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
        if target.until and any(row["step"] == target.until for row in read_metrics(self.path / METRICS)):
            return "waiting"
        return "passed" if result and result["status"] == "finished" and result["step"] > target.steps else None

    def is_finished(self) -> bool:
        """Whether a trustworthy result is there."""
        try:
            return self.outcome() is not None
        except DamagedRecord:
            return False

    def status_word(self) -> str:
        """The status word on disk; ``queued`` if there is none that can be read."""
        try:
            word = files.read_json(self.path / STATUS).get("status")
        except (FileNotFoundError, DamagedRecord):
            return "queued"
        return word if word in STATUSES else "queued"

    def error(self) -> str | None:
        """Why the run diverged or failed, in words."""
        for file, key in ((RESULT, "divergence"), (STATUS, "error")):
            try:
                if text := files.read_json(self.path / file).get(key):
                    return str(text)
            except (FileNotFoundError, DamagedRecord):
                continue
        return None

    def code(self) -> dict[str, str]:
        """The fingerprints of a user's own code that the run began with, by group; empty where none is known."""
        try:
            found = files.read_json(self.path / FACTS).get("code")
        except (FileNotFoundError, DamagedRecord):
            return {}
        return {str(group): str(digest) for group, digest in found.items()} if isinstance(found, dict) else {}

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
        if not keep_until:
            (self.path / BASKET).unlink(missing_ok=True)
        elif (self.path / BASKET).exists():
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
        if result is not None and result["status"] != "eliminated":
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
        files.append(self.path / file, _to_json(row))

    def append_last(self, row: dict[str, Any]) -> None:
        """Add the row of the last step, in the place of one that stands there for this step already."""
        rows = [earlier for earlier in read_metrics(self.path / METRICS) if earlier["step"] < row["step"]]
        write_atomically(self.path / METRICS, b"".join(_to_json(each) for each in [*rows, row]))

    def basket(self, file: str = BASKET) -> list[dict[str, Any]]:
        """The gradients that were measured, by step and estimator."""
        return read_rows(self.path / file, "measured")

    def rows_before(self, step: int) -> dict[str, Any]:
        """What a checkpoint of ``step`` relies on, and holds, so that a later edit is noticed (:meth:`missed`).

        ``count`` and ``digest``: the number and the hash of the metrics of earlier steps; those of its own step it
        holds itself. ``basket``: a hash of each row that a basket had measured.
        """
        rows = [row for row in read_metrics(self.path / METRICS) if row["step"] < step]
        basket = {_key(row): seals.chained([row]) for row in self.basket() if row["step"] < step}
        return {"count": len(rows), "digest": seals.chained(rows), "basket": basket}

    def missed(self, state: dict[str, Any]) -> str | None:
        """In words, why the rows are not those that a checkpoint ``state`` was written beside; ``None`` if they are.

        Of a basket they may be fewer: what is missing is measured again. Raises :class:`DamagedRecord`.
        """
        step, now, then = state["step"], self.rows_before(state["step"]), state.get("rows")
        if not isinstance(then, dict):  # of older code: the count
            then = {"count": then, "digest": now["digest"], "basket": {}}
        if now["count"] != then.get("count"):
            return f"{self.path}: the metrics have {now['count']} rows before step {step}, not {then.get('count')}"
        if now["digest"] != then.get("digest"):
            return f"{self.path / METRICS}: rows before step {step} were changed after its checkpoint was written"
        measured = then.get("basket", {})
        for key, digest in now["basket"].items():
            if measured.get(key, digest) != digest:
                return f"{self.path / BASKET}: {key} was changed after the checkpoint of step {step} was written"
        return None

    def status(self, status: str, **details: Any) -> None:
        """Write the status word, with details such as ``error``."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
        write_atomically(self.path / STATUS, _to_json({"status": status, "time": time.time(), **details}))

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, last; ``result["status"]`` is a word of :data:`OVER`."""
        self.status(result["status"])
        sealed = seals.seal(self.path, SEALED | BESIDE, {**result, "run": self.name})
        write_atomically(self.path / RESULT, _to_json(sealed, indent=2))

    def add_basket(self, options: dict[str, Any]) -> None:
        """Put the rows of ``REPLAYED`` in the place of the basket's, and into the finished run's result."""
        result = self.result()
        assert result is not None and result["status"] == "finished"
        if changed := self.differences():
            raise changed[0]
        (self.path / REPLAYED).touch()  # nothing could be measured
        os.replace(self.path / REPLAYED, self.path / BASKET)
        self.finish({**result, "basket": options})

    def validation(self, metric: str = "") -> dict[int, float]:
        """The primary metric on validation by step, negated if lower is better; NaN where it was not finite.

        Or another ``metric``, negated if ``-`` stands before it. Raises ``KeyError``, with what is measured, if that is
        not, and :class:`DamagedRecord`, also for a record that does not say what its primary metric is.
        """
        rows = read_metrics(self.path / METRICS)
        if not rows:
            return {}
        try:
            primary = files.read_json(self.path / FACTS)["primary"]
            name, sign = f"valid_{primary['metric']}", 1.0 if primary["higher_is_better"] else -1.0
        except (FileNotFoundError, KeyError, TypeError):
            raise DamagedRecord(f"{self.path / FACTS}: does not say what the primary metric is") from None
        if metric:
            name, sign = f"valid_{metric.removeprefix('-')}", -1.0 if metric.startswith("-") else 1.0
            measured = sorted({key for row in rows for key in row if key.startswith("valid_")})
            if measured and name not in measured:
                raise KeyError(", ".join(key.removeprefix("valid_") for key in measured))
        return {row["step"]: float("nan") if row[name] is None else sign * row[name] for row in rows if name in row}

    def eliminate(self, rung: int) -> None:
        """End the run, which lost a race at the step ``rung``; its checkpoint stays."""
        row = read_metrics(self.path / METRICS)[-1]
        costs = {"wall_seconds": row.get("seconds"), "loss_evaluations": row.get("loss_evaluations")}
        self.finish({"status": "eliminated", "step": row["step"], "rung": rung, "metrics": row, **costs})
        self.log(f"eliminated at step {rung}")

    def known_as(self, logger: str, new: str) -> str:
        """The id under which ``logger`` knows the run: the first that was kept; ``new`` if there is none."""
        try:
            known = files.read_json(self.path / LOGGERS)
        except (FileNotFoundError, DamagedRecord):
            known = {}
        if logger not in known:
            write_atomically(self.path / LOGGERS, _to_json(known | {logger: new}))
        return str(known.get(logger, new))

    def log(self, text: str) -> None:
        """Add a line (or a traceback) to the run's log, with the time."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n"
        files.append(self.path / LOG, line.encode("utf-8", "backslashreplace"))


def _key(row: dict[str, Any]) -> str:
    return f"step {row['step']}, {row['measured']}, {row.get('kind')}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file by step. A torn last line is a kill's trace and skipped; other damage raises."""
    return read_rows(path)


def read_rows(path: Path, *keys: str) -> list[dict[str, Any]]:
    """As :func:`read_metrics`, of a file whose rows are told apart by their step and ``keys``."""
    try:
        content = files.read(path, files.ROWS)
    except FileNotFoundError:
        return []
    return parse_rows(path, content, *keys)


def parse_rows(path: Path, content: bytes, *keys: str) -> list[dict[str, Any]]:
    """:func:`read_rows` of a file with this ``content``."""
    number = content.count(b"\n") + 1
    if number > MOST_ROWS:
        raise UnreadableRecord(f"{path}: has {number:,} rows; at most {MOST_ROWS:,} are read")
    if max(content.count(b"["), content.count(b"{")) > number + NESTED or content.count(b'"') > TEXTS * number + NESTED:
        raise UnreadableRecord(f"{path}: holds more lists, objects and texts than rows of metrics do")
    lines = content.split(b"\n")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            if len(line) > LINE:
                raise ValueError
            row = json.loads(line, object_pairs_hook=files.without_duplicates)
            step = int(row["step"])
            if step.bit_length() > 63:
                raise OverflowError
            key = (step, *(row[name] for name in keys))
            if not all(isinstance(each, str) for each in key[1:]):
                raise TypeError
            rows[key] = {**row, "step": step}  # of a key that stands twice the later row counts
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            if number == len(lines):
                continue
            raise DamagedRecord(f"{path}: line {number} is not a row of metrics") from None
    return [rows[key] for key in sorted(rows)]


def find_runs(path: Path) -> list[Path]:
    """The run directories at or below ``path`` (a run, a sweep, or a folder of sweeps), sorted.

    A directory with any file of a record is one, and so is one that cannot be looked into: its reader says what is
    wrong with it. A directory that several links lead to counts once.
    """
    level, runs, seen = [Path(path)], [], set[tuple[int, int]]()
    for _ in range(3):
        here = [folder for folder in level if _is_new(folder, seen)]
        found = {folder for folder in here if _may_be_a_run(folder)}
        runs += sorted(found)
        level = [child for folder in here if folder not in found for child in folders(folder)]
    return runs


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether no other path led to this directory; it is added to ``seen``."""
    try:
        found = os.stat(folder)
    except OSError:
        return True
    place = (found.st_dev, found.st_ino)
    if place in seen:
        return False
    seen.add(place)
    return True


def _may_be_a_run(folder: Path) -> bool:
    for name in (CONFIG, RESULT, FACTS, METRICS, STATUS, CHECKPOINT):
        try:
            os.lstat(f"{folder}/{name}")
            return True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return True
    return _is_closed(folder)


def _is_closed(folder: str | Path) -> bool:
    return os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK)


def older_results(run: Path) -> list[Path]:
    """The folders of the results that a run had before, by name; the folder of all if it cannot be looked into."""
    older = Path(run) / OLDER
    return [older] if _is_closed(older) else [each for each in folders(older) if not each.name.startswith(".")]


def folders(path: Path) -> list[Path]:
    """The folders in a folder, by name; those that a link leads to come last."""
    try:
        with os.scandir(path) as entries:
            found = sorted((entry.is_symlink(), entry.name) for entry in entries if _leads_to_a_folder(entry))
    except OSError:  # not there, not a folder, or not ours to look into
        return []
    return [path / name for _, name in found]


def _leads_to_a_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def read_facts(path: Path, result: dict[str, Any] | None, contents: dict[str, bytes] | None = None) -> dict[str, Any]:
    """What ``run.json`` says; of a run of older code the same, as far as its config tells (:mod:`.legacy`).

    Options that are younger than the record stand there at their defaults. ``contents`` are files that were read.
    """
    try:
        known_as = (contents or {}).get(FACTS)
        found = files.read_json(path / FACTS) if known_as is None else files.parse_json(path / FACTS, known_as)
    except FileNotFoundError:
        return legacy.facts(complete(_config_of(path, result)))
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


def read_constants(
    path: Path, contents: dict[str, bytes] | None = None
) -> tuple[dict[str, Any], dict[str, Any], int | None]:
    """What is constant over one run (options, status, protocol, costs) as a flat dict; the run's facts; of a finished
    run its last step.

    It is read before the metrics: where there is a result, they are complete. ``contents`` gets the files that were
    read and checked for that. ``facts["sealed"]`` tells how the result is (:func:`analysis.records.seals.kind`).
    """
    record = RunRecord(path)
    contents = {} if contents is None else contents
    result = record.result(contents)
    facts = read_facts(path, result, contents)
    facts["sealed"] = seals.kind(result) if result else None
    options = {name: value for each in facts["options"].values() for name, value in each.items()}
    constants = {**columns(options), "run": record.name, "identity": _identity(facts)}
    constants["family"] = facts.get("family")
    if primary := facts.get("primary"):
        constants["primary"] = primary["metric"]
        constants["primary_sign"] = 1 if primary["higher_is_better"] else -1
    if result is None:
        try:
            status = files.read_json(path / STATUS)
        except FileNotFoundError:
            status = {"status": "queued"}
        # A kill between the last status and the result leaves "finished" without a result: the run is not over.
        word = status.get("status")
        constants["status"] = word if word in STATUSES and word not in OVER else "running"
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
    try:
        found = files.read_yaml(path / OVERRIDES)
    except FileNotFoundError:
        raise DamagedRecord(f"{path / OVERRIDES}: is missing") from None
    if not isinstance(found, list):
        raise DamagedRecord(f"{path / OVERRIDES}: not a run's overrides")
    return [str(line) for line in found]


def read_config(path: Path) -> dict[str, Any]:
    """The config of the run in ``path``. Raises :class:`DamagedRecord`."""
    try:
        config = files.read_yaml(path / CONFIG)
    except FileNotFoundError:
        raise DamagedRecord(f"{path / CONFIG}: is missing") from None
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in ("estimator", "task")):
        raise DamagedRecord(f"{path / CONFIG}: not a run's config")
    return config


def _config_of(path: Path, result: dict[str, Any] | None) -> dict[str, Any]:
    """The run's config. Where there is a result, its own copy is taken: JSON is read far faster."""
    return dict(result["config"]) if result and isinstance(result.get("config"), dict) else read_config(path)


def flat_config(config: dict[str, Any]) -> dict[str, Any]:
    """``{"optimizer": {"lr": .1}}`` -> ``{"optimizer.lr": .1}``; a group with a name stands for itself."""
    return columns(dict(legacy.leaves(config)))
