"""The run record: the only file that knows how a run is stored on disk; it writes and reads the format.

A run is a directory ``runs/<sweep>/<run>/`` with

==================  ==================================================================================
``.hydra/``         ``config.yaml`` (this run's own resolved config) and ``overrides.yaml``
``status.json``     ``queued | running | finished | diverged | failed`` and, if failed, the error
``metrics.jsonl``   one row per evaluated step, appended and flushed as training goes
``basket.jsonl``    one row per estimator and step at which gradients were measured (with ``basket=``)
``images.npz``      reconstructions and decoded samples for the figures (optional)
``checkpoint.pt``   the training state, replaced atomically
``claim``           exists while a process trains the run (:mod:`analysis.records.claims`)
``log.txt``         when it started, stopped, went on, failed (with the traceback), for people
``result.json``     written last and atomically: a run with a result is finished, one without is not
==================  ==================================================================================

A diverged run has a result too (with ``status: diverged``): it is over, and it is counted. The sweep's folder may hold
``.frame.parquet``, from which its frame is loaded faster (:mod:`analysis.records.collect`); it is safe to delete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from analysis.records.claims import Claim

CONFIG = Path(".hydra") / "config.yaml"
OVERRIDES = Path(".hydra") / "overrides.yaml"
METRICS, BASKET, STATUS, RESULT = "metrics.jsonl", "basket.jsonl", "status.json", "result.json"
IMAGES, CHECKPOINT, LOG = "images.npz", "checkpoint.pt", "log.txt"
COSTS = ("wall_seconds", "loss_evaluations", "peak_memory_bytes", "pack_replicas", "device", "commit", "diverged_at")
STATUSES = ("queued", "running", "finished", "diverged", "failed")

# Settings that change where, how fast or how visibly a run happens, but not its numbers.
UNSCIENTIFIC = (
    "runs_dir",
    "sweep",
    "budget",
    "source",
    "logger",
    "device",
    "threads",
    "replicas",
    "checkpoint_seconds",
    "progress",
    "workers",
    "pack_size",
    "retries",
    "retry",
    "dry_run",
    "cluster",
)


class DamagedRecord(ValueError):
    """A file of a run record that cannot be what this module wrote; the message names the file."""


def scientific(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's config that determines its numbers: everything but ``UNSCIENTIFIC`` and ``data.root``.

    ``basket=none`` is left out, too: it says what a config without a basket says.
    """
    kept = {key: value for key, value in config.items() if key not in UNSCIENTIFIC}
    if isinstance(kept.get("basket"), dict) and kept["basket"].get("name") == "none":
        del kept["basket"]
    if isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "root"}
    return kept


def unscientific(field: str) -> bool:
    """Whether a field of the config, with dots, changes where, how fast or how visibly a run happens, and no number."""
    return field == "data.root" or field.split(".")[0] in UNSCIENTIFIC


def run_name(config: dict[str, Any]) -> str:
    """``<estimator>-<task>-<data>-s<seed>-<hash of the scientific config>``: the same config, the same name."""
    text = json.dumps(scientific(config), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    names = "-".join(config[group]["name"] for group in ("estimator", "task", "data"))
    return f"{re.sub('[^A-Za-z0-9_.-]', '_', names)[:100]}-s{config['seed']}-{digest}"


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


class RunRecord:
    """Writes the record of one run. ``path`` is the run's directory; it is created by ``claim.take()``."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.claim = Claim(self.path)

    def outcome(self) -> str | None:
        """``finished`` or ``diverged`` if the run is over, else ``None``.

        Raises:
            DamagedRecord: if there is a result that cannot be trusted: not readable, another run's, or its config or
                metrics are not what they were when it was written.
        """
        try:
            result = _read_json(self.path / RESULT)
        except FileNotFoundError:
            return None
        if result.get("run") != self.path.name:
            raise DamagedRecord(f"{self.path / RESULT}: is the result of run {result.get('run')!r}")
        if result.get("status") not in ("finished", "diverged"):
            raise DamagedRecord(f"{self.path / RESULT}: has no status that this module writes")
        if "seals" in result and result["seals"] != self._seals():
            now, then = self._seals(), result["seals"]
            changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
            raise DamagedRecord(f"{self.path / changed[0]}: was changed after the run")
        return str(result["status"])

    def is_finished(self) -> bool:
        """Whether a trustworthy result is there (finished or diverged)."""
        try:
            return self.outcome() is not None
        except DamagedRecord:
            return False

    def word(self) -> str:
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

    def start(self, config_yaml: str, overrides: list[str], keep_until: int = 0) -> None:
        """Begin (or, with ``keep_until``, go on): write the config, drop rows of steps after ``keep_until``."""
        (self.path / CONFIG).parent.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, OVERRIDES, METRICS, BASKET, STATUS, CHECKPOINT, IMAGES, RESULT):
            for left_behind in (self.path / name).parent.glob(f".{Path(name).name}.*.tmp"):  # by a killed process
                left_behind.unlink(missing_ok=True)
        write_atomically(self.path / CONFIG, config_yaml.encode())
        write_atomically(self.path / OVERRIDES, "".join(f"- {json.dumps(line)}\n" for line in overrides).encode())
        (self.path / RESULT).unlink(missing_ok=True)
        rows = [row for row in read_metrics(self.path / METRICS) if row["step"] <= keep_until] if keep_until else []
        write_atomically(self.path / METRICS, b"".join(_to_json(row) for row in rows))
        if (self.path / BASKET).exists():
            rows = [row for row in self.basket() if row["step"] <= keep_until]
            write_atomically(self.path / BASKET, b"".join(_to_json(row) for row in rows))
        self.status("running")

    def append(self, row: dict[str, Any], file: str = METRICS) -> None:
        """Add one evaluated step (or to ``BASKET`` one estimator at one); flushed, so that it survives a kill."""
        with open(self.path / file, "ab") as rows:
            rows.write(_to_json(row))

    def basket(self) -> list[dict[str, Any]]:
        """The gradients that were measured, by step and estimator."""
        return read_rows(self.path / BASKET, "measured")

    def rows_at(self, step: int) -> int:
        """The rows that a checkpoint of ``step`` relies on; of the basket those of its own step may yet come."""
        metrics = sum(row["step"] <= step for row in read_metrics(self.path / METRICS))
        return metrics + sum(row["step"] < step for row in self.basket())

    def status(self, status: str, **details: Any) -> None:
        """Write the status word, with details such as ``error``."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
        write_atomically(self.path / STATUS, _to_json({"status": status, "time": time.time(), **details}))

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, last; ``result["status"]`` is ``finished`` or ``diverged``."""
        self.status(result["status"])
        sealed = {**result, "run": self.path.name, "seals": self._seals()}
        write_atomically(self.path / RESULT, _to_json(sealed, indent=2))

    def _seals(self) -> dict[str, Any]:
        """What tells whether other files were changed since: a hash of the config, the size of the metrics."""
        try:
            config = hashlib.sha256((self.path / CONFIG).read_bytes()).hexdigest()
            files = [METRICS, BASKET] if (self.path / BASKET).exists() else [METRICS]
            return {str(CONFIG): config, **{name: (self.path / name).stat().st_size for name in files}}
        except OSError as error:
            return {str(Path(str(error.filename)).relative_to(self.path)): "missing"}

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


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [path / name for name in sorted(entry.name for entry in entries if entry.is_dir())]
    except OSError:  # not there, not a folder, or not ours to look into
        return []


def read_constants(path: Path) -> tuple[dict[str, Any], int | None]:
    """What is constant over one run (config, status, protocol, costs) as a flat dict; of a finished run its last step.

    It is read before the metrics: where there is a result, they are complete.
    """
    try:
        result = _read_json(path / RESULT)
    except FileNotFoundError:
        result = None
    config, name = _read_config(path, result)
    constants = {**_flat_config(config), "run": path.name}
    if result is None:
        try:
            status = _read_json(path / STATUS)
        except FileNotFoundError:
            status = {"status": "queued"}
        # A kill between the last status and the result leaves "finished" without a result: the run is not over.
        word = status.get("status")
        constants["status"] = word if word in ("queued", "running", "failed") else "running"
        constants["error"] = status.get("error")
        return constants, None
    if result.get("run") != path.name:
        raise DamagedRecord(f"{path / RESULT}: is the result of run {result.get('run')!r}, not of {path.name!r}")
    if name != path.name:
        raise DamagedRecord(f"{path / CONFIG}: the config was changed after the run (it is {name!r})")
    if result.get("status") not in STATUSES or not isinstance(result.get("protocol", {}), dict):
        raise DamagedRecord(f"{path / RESULT}: has no status or no protocol that this module writes")
    constants["status"] = result["status"]
    for key, value in result.get("protocol", {}).items():
        constants[f"protocol.{key}"] = value
    for key in COSTS:
        constants[key] = result.get(key)
    return constants, result.get("step", -1) if result["status"] == "finished" else None


def read_overrides(path: Path) -> list[str]:
    """The overrides that gave a run its config, as on the command line. Raises :class:`DamagedRecord`."""
    import yaml

    try:
        return [str(line) for line in yaml.safe_load((path / OVERRIDES).read_text())]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise DamagedRecord(f"{path / OVERRIDES}: not a run's overrides ({type(error).__name__}: {error})") from None


def _read_config(path: Path, result: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """The run's config and the name that follows from it.

    Where the result's seal says that the file is as it was, the result's own copy is taken: JSON is read far faster.
    """
    import yaml

    try:
        content = (path / CONFIG).read_bytes()
        seals, config = (result or {}).get("seals"), (result or {}).get("config")
        sealed = isinstance(seals, dict) and seals.get(str(CONFIG)) == hashlib.sha256(content).hexdigest()
        if not (sealed and isinstance(config, dict)):
            config = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return config, run_name(config)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise DamagedRecord(f"{path / CONFIG}: not a run's config ({type(error).__name__}: {error})") from None


def _flat_config(config: dict[str, Any]) -> dict[str, Any]:
    """``{"optimizer": {"lr": .1}}`` -> ``{"optimizer.lr": .1}``; a group with a name stands for itself."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            if "name" in value:
                flat[key] = value["name"]
            for inner, leaf in _flat_config(value).items():
                if inner != "name":
                    flat[f"{key}.{inner}"] = leaf
        else:
            flat[key] = json.dumps(value) if isinstance(value, list) else value
    return flat
