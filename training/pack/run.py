"""Train runs: claim them, go on from their checkpoints, pack them, record what happens to each."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from analysis.records import CONFIG, DamagedRecord, RunRecord, UnreadableRecord
from analysis.records.claims import HEARTBEAT_SECONDS
from training.config import identity
from training.config.plan import RunPlan
from training.devices import pick_device
from training.errors import UserError
from training.interrupt import Stopped
from training.kernels.heap import keep_freed_memory
from training.kernels.matmul import use_onednn, use_tf32
from training.pack import checkpoints, fingerprint, memory
from training.pack.build import build
from training.pack.loop import replay, train
from training.pack.pack import Pack
from training.progress import BUILDING, Event, Report


@dataclass
class Member:
    """A run of a pack: what is asked for, its record, and where it goes on.

    ``replayed``: it is finished, and only what is measured on its way (``basket=``) is missing.
    """

    plan: RunPlan
    record: RunRecord
    state: dict[str, Any] | None = None
    replayed: bool = False

    @property
    def step(self) -> int:
        return self.state["step"] if self.state else 0


def train_runs(runs: Sequence[RunPlan], report: Report, solo: bool = False) -> None:
    """Train the runs of one pack that are neither finished nor being trained elsewhere.

    Runs at different steps, or more than fit into memory, are trained one group after the other. What goes wrong is
    recorded as ``failed`` with its traceback in the run's log; other groups go on.

    Args:
        runs: with equal structure (:func:`training.config.plan.structure`).
        report: told what happens, as events (:mod:`training.progress`).
        solo: raise errors after recording them; a mistake of the user raises before any record is touched.

    Raises:
        Stopped: if a signal asked for it; checkpoints are written.
        UserError: for a mistake of the user, or a folder that cannot be written (``solo`` only).
    """
    with leaving_nothing_empty(runs[0].path.parent):
        _train_runs(runs, report, solo)


def _train_runs(runs: Sequence[RunPlan], report: Report, solo: bool) -> None:
    failures: dict[str, str] = {}

    def noting(event: Event) -> None:
        if event["event"] == "run" and event["status"] == "failed":
            failures[event["run"]] = event["error"]
        report(event)

    _train_members(runs, noting, solo)
    if failures and solo:  # in a sweep the scheduler says it
        raise UserError("; ".join(f"{name}: {error}" for name, error in failures.items()))


def _train_members(runs: Sequence[RunPlan], report: Report, solo: bool) -> None:
    first = runs[0].config
    device = pick_device(first["device"])
    torch.set_num_threads(first["threads"])
    keep_freed_memory()
    use_onednn()
    use_tf32(first["allow_tf32"])
    members: list[Member] = []
    try:
        for run in runs:
            try:
                if record := _take(run, report):
                    members.append(Member(run, record))
                continue
            except OSError as error:
                mistake = f"runs_dir: cannot write to {run.path} ({error.strerror}); see runs_dir=PATH"
            except UnreadableRecord as error:
                mistake = f"{error}; remove it to train the run again"
            report({"event": "run", "run": run.name, "status": "failed", "error": mistake})
        with _heartbeats([member.record for member in members]) as lost:
            for group in _groups(members, device, report):
                _train_group(group, device, report, lost, solo)
    finally:
        for member in members:
            member.record.claim.release()
            with contextlib.suppress(OSError):
                member.record.path.rmdir()  # nothing was written: leave nothing behind


@contextlib.contextmanager
def leaving_nothing_empty(folder: Path) -> Iterator[None]:
    """Remove ``folder`` and its parents afterwards, as far as they are new and nothing is in them."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        for each in new:
            with contextlib.suppress(OSError):
                each.rmdir()


def _take(run: RunPlan, report: Report) -> RunRecord | None:
    """Claim a run that is to be trained. Raises :class:`UnreadableRecord` for one of which nobody knows what it has."""
    record = run.record
    with contextlib.suppress(DamagedRecord):
        if record.answer(run.target) is not None:
            other = fingerprint.changed(run.config, record)
            since = f" with other code of {other} than now; retry=changed trains it again" if other else ""
            report({"event": "skipped", "run": run.name, "reason": f"finished already{since}"})
            return None
    if not record.claim.take():
        report({"event": "skipped", "run": run.name, "reason": "being trained by another process"})
        return None
    try:
        over = record.answer(run.target) is not None  # by another process, between the two looks
    except UnreadableRecord:
        record.claim.release()
        raise
    except DamagedRecord as error:
        report({"event": "message", "text": f"{error}; the run is redone"})
        over = False
    if over:
        record.claim.release()
        return None
    return record


def _groups(members: list[Member], device: torch.device, report: Report) -> list[list[Member]]:
    """Members that can be trained together: of one step, compiled or not, and no more than fit into memory."""
    alike: dict[tuple[object, ...], list[Member]] = {}
    for member in members:
        member.replayed = _lacks_its_basket(member)
        trouble = None
        if not member.replayed:
            member.state, trouble = checkpoints.load(member.record)
        if member.step > member.plan.last:
            reason = f"trained to step {member.step} already, and not kept as it was at {member.plan.last}"
            report({"event": "skipped", "run": member.plan.name, "reason": reason})
            continue
        if trouble:
            report({"event": "message", "text": f"{trouble}; the run starts again"})
        compiled = member.state is not None and member.state.get("compiled") is True
        alike.setdefault((member.step, member.replayed, compiled), []).append(member)
    groups = []
    for group in alike.values():
        size = memory.largest_pack([member.plan.config for member in group], device)
        groups += [group[start : start + size] for start in range(0, len(group), size)]
    return groups


def _lacks_its_basket(member: Member) -> bool:
    try:
        result = member.record.result()
    except DamagedRecord:
        return False
    target = member.plan.target
    if result is None or result["status"] != "finished" or not target.is_answered_by(result):
        return False
    return bool(target.basket) and result.get("basket") != target.basket


def _train_group(group: list[Member], device: torch.device, report: Report, lost: set[RunRecord], solo: bool) -> None:
    try:
        _train_pack(group, device, report, lost)
    except Exception as error:
        if not isinstance(error, Stopped) and _is_out_of_memory(error) and len(group) > 1:
            smaller = len(group) // 2
        elif isinstance(error, Stopped) or (solo and isinstance(error, UserError)):
            raise
        else:
            _record_failure(group, error, report)
            if solo:
                raise
            return
    else:
        if lacking := [member for member in group if not member.replayed and _lacks_its_basket(member)]:
            for part in _groups(lacking, device, report):  # it was asked for when training had begun
                _train_group(part, device, report, lost, solo)
        return
    # Outside of the handler: the traceback keeps the pack's tensors alive.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    report({"event": "message", "text": f"out of memory with {len(group)} runs in a pack: going on with {smaller}"})
    for half in (group[:smaller], group[smaller:]):
        for part in _groups(half, device, report):
            _train_group(part, device, report, lost, solo)


def _train_pack(group: list[Member], device: torch.device, report: Report, lost: set[RunRecord]) -> None:
    configs, records = [member.plan.config for member in group], [member.record for member in group]
    report({"event": "phase", "phase": BUILDING, "done": 0, "total": 0})
    pack = build(configs, device)
    if group[0].replayed:
        return replay(pack, records, report, lost)
    states = [member.state for member in group if member.state is not None]
    if states:
        try:
            pack.restore(states)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            text = f"{records[0].path}: the checkpoint does not fit this version of the code ({error}); starting again"
            report({"event": "message", "text": text})
            pack = build(configs, device)
    begun = []
    for member in group:
        try:
            _begin(member.plan, member.state, pack)
            member.record.log(f"{'goes on' if pack.step else 'starts'} at step {pack.step} in a pack of {len(group)}")
            begun.append(member)
        except (OSError, DamagedRecord) as error:
            _record_failure([member], error, report)
    if len(begun) == len(group):
        train(pack, records, report, lost, group[0].plan.until)
    elif begun:
        _train_pack(begun, device, report, lost)


def _begin(plan: RunPlan, state: dict[str, Any] | None = None, pack: Pack | None = None) -> None:
    """Start the record, from the step of the ``pack`` on; without one what a task declares is not known."""
    config = yaml.dump(plan.config, sort_keys=False, Dumper=_DUMPER)
    facts = identity.facts(plan.config)
    if pack is None:
        return plan.record.start(config, list(plan.overrides), facts)
    facts["primary"] = dataclasses.asdict(pack.task.primary)
    code = plan.record.code() if pack.step else fingerprint.fingerprints(plan.config)
    facts |= {"code": code} if code else {}
    along = state["along"] if state and pack.step else None
    plan.record.start(config, list(plan.overrides), facts, pack.step, along)


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def record_failure(plan: RunPlan, sentence: str, details: str) -> None:
    """Record a run, which this process has claimed, as ``failed``. Raises ``OSError`` where that cannot be written."""
    record = plan.record
    if not (record.path / CONFIG).exists():  # it never began: the analysis and retry=failed count it, too
        _begin(plan)
    record.log(details)
    record.status("failed", error=sentence)


def _record_failure(group: list[Member], error: Exception, report: Report) -> None:
    """``failed`` for each run that is not over, with the traceback in its log."""
    plain = isinstance(error, UserError | DamagedRecord)
    sentence = str(error) if plain else f"{type(error).__name__}: {error}"
    if _is_out_of_memory(error):
        sentence = f"one run alone does not fit into memory ({sentence}); use a smaller model or batch_size"
    for member in group:
        record = member.record
        if member.plan.is_over():
            continue
        with contextlib.suppress(OSError):  # a full disk, mostly: then the report is all there is
            record_failure(member.plan, sentence, "failed\n" + "".join(traceback.format_exception(error)))
        report({"event": "run", "run": record.path.name, "status": "failed", "error": sentence})


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextlib.contextmanager
def _heartbeats(records: Sequence[RunRecord]) -> Iterator[set[RunRecord]]:
    """Keep the claims alive from a thread: an evaluation can take longer than a claim lasts. Yields a set that fills
    with the records whose claim another process has taken over."""
    done, lost = threading.Event(), set[RunRecord]()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS / 6):
            lost.update(record for record in records if not record.claim.beat())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()
