"""The loop: one pack of runs from its first step (or its checkpoint) to a record per run."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from analysis.records import IMAGES, REPLAYED, RunRecord
from training.gradients.watcher import Basket
from training.loggers import open_loggers
from training.pack.evaluation import commit, evaluate_last, last_rows, save_pictures, summary
from training.pack.pack import Pack
from training.pack.watchers import Checkpoint, Divergence, Evaluation, Progress, Training, Watcher
from training.progress import FINAL, Report


def train(
    pack: Pack, records: Sequence[RunRecord], report: Report, lost: Collection[RunRecord] = (), until: int = 0
) -> None:
    """Train ``pack`` to its last step and write each run's metrics, pictures, checkpoint and result; or with ``until``
    to this step, and write checkpoints only.

    A replica whose loss or gradient is not finite is frozen and recorded as ``diverged``; the others go on. A run in
    ``lost`` (another process has taken it over) is dropped. A pack that is at its last step already is evaluated.

    Raises:
        Stopped: if a signal asked for it; checkpoints are written and the runs are ``queued``.
    """
    commit()  # before anybody changes the code
    with open_loggers(pack.configs, records) as loggers:
        training = Training(pack, records, report, lost, loggers, until)
        begin(training)
        evaluation, basket = Evaluation(training), Basket(training)
        if basket.due():  # a stop came in between
            with training.watch.doing("evaluation"):
                basket.look()
        watchers: list[Watcher] = [evaluation, basket, Checkpoint(training), Progress(training, evaluation)]
        run_through(training, watchers, Divergence(training))
        if training.until < training.steps:
            wait(training)
        elif training.alive:
            finish(training, basket)


def replay(pack: Pack, records: Sequence[RunRecord], report: Report, lost: Collection[RunRecord] = ()) -> None:
    """Add a basket to finished runs: ``pack``, at its first step, goes the same way again, and only gradients are
    measured. The rows stand in a file of their own until all are there; nothing else of the records is touched.

    Raises:
        Stopped: if a signal asked for it; what was measured is kept.
    """
    training = Training(pack, records, report, lost)
    begin(training)
    basket = Basket(training, REPLAYED)
    run_through(training, [basket, Progress(training, basket)])
    for r in list(training.alive):
        with training.writing(r) as record:
            record.add_basket(pack.configs[r]["basket"])
            record.log(f"a basket was measured along its {pack.step} steps")
            report({"event": "run", "run": record.name, "status": "finished", "error": None})


def begin(training: Training) -> None:
    """Report the pack."""
    pack, config = training.pack, training.pack.configs[0]
    label = f"{config['estimator']['name']} on {config['task']['name']}"
    about = {"label": label, "replicas": pack.replicas, "step": pack.step, "steps": training.until}
    training.report({"event": "pack", **about})


def run_through(training: Training, watchers: Sequence[Watcher], divergence: Divergence | None = None) -> None:
    """All steps that are left; when one of the ``watchers`` may be due, those that are look, in their order."""
    pack = training.pack
    asked = [*watchers, *([divergence] if divergence else [])]
    while pack.step < training.until and training.alive:
        pack.train_steps(min(training.until - pack.step, *(watcher.ahead() for watcher in asked)))
        due = [watcher for watcher in watchers if watcher.due()]
        if divergence and (due or divergence.due()):
            divergence.look(everywhere=bool(due))
            training.drop_lost()
        if due:
            with training.watch.doing("watching"):
                for watcher in due:
                    if training.alive:
                        watcher.look()


def wait(training: Training) -> None:
    """Write checkpoints at a rung of a race: the runs go on, or not, when the others are there."""
    training.save()
    for r in list(training.alive):
        with training.writing(r) as record:
            record.status("waiting", step=training.pack.step)
            record.log(f"waits at step {training.pack.step} for the others of its race")
            training.report({"event": "run", "run": record.name, "status": "waiting", "error": None})


def finish(training: Training, basket: Basket) -> None:
    """Evaluate the last state and write the results."""
    pack = training.pack
    with training.watch.doing("evaluation"):
        training.save()
        with training.evaluating(FINAL, last_rows(pack), stop=True):
            last = evaluate_last(pack)
        pictures = pack.task.examples()
    training.keep_time()
    for r, row in enumerate(last):
        if r not in training.alive:
            continue
        with training.writing(r) as record:
            record.append_last(row)
            training.loggers[r].log(row)
            if pictures[r]:
                save_pictures(record.path / IMAGES, pictures[r])
            result = summary(pack, r, "finished", row)
            if basket.is_complete(r):
                result["basket"] = pack.configs[r]["basket"]
        if r in training.alive:
            training.end(r, result)
