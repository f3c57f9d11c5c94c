"""What gradients of the unlabelled term do for labels: the exact one, an unbiased one, and one turned round."""

import pytest
import torch
from test_semi_supervised import CPU, digits

from estimators import RLOO, Exact
from training.config.plan import RunPlan
from training.errors import UserError
from training.gradients import labels
from training.pack.build import build
from training.pack.run import train_runs
from training.progress import PackLine


def reversed_exact(logits, loss, context=None):
    losses = Exact()(logits, loss)
    return 2 * losses.detach() - losses


def test_directions_of_known_gradients():
    pack = build([digits("estimator=exact")], CPU)
    for _ in range(3):
        pack.train_step()
    classifier = labels.Classifier(pack, 40)
    estimators = {"exact": Exact(), "rloo": RLOO(8), "reversed": reversed_exact}
    found = classifier.directions(estimators, 40)
    assert found["exact"].cosine == pytest.approx(1) and found["exact"].length == pytest.approx(1)
    assert found["exact"].without_kl == pytest.approx(1) and 0.9 < found["exact"].halves < 1
    assert found["reversed"].without_kl == pytest.approx(-1)
    assert 0.9 < found["rloo"].cosine < 1 and found["rloo"].length == pytest.approx(1, abs=0.2)
    assert found["rloo"].labels == pytest.approx(found["exact"].labels, abs=0.2)
    # a small step down U changes the cross-entropy of the true labels as the cosine with its gradient says
    task, before = pack.task, [parameter.detach().clone() for parameter in classifier.parameters]

    def cross_entropy():
        logits = task.latents.logits(task.classifier(classifier.x)).squeeze(-2)[0]
        return torch.nn.functional.cross_entropy(logits, classifier.labels)

    slope = classifier.gradient(cross_entropy())
    first, second = classifier.mean(Exact(), 40)
    descent, start = (first + second) / 2, cross_entropy().item()
    step, place = 1e-2 * descent / descent.norm(), 0
    with torch.no_grad():
        for parameter, old in zip(classifier.parameters, before, strict=True):
            own = step[place : place + old.numel()].view_as(old)
            parameter.copy_(old - own)
            place += old.numel()
        change = (cross_entropy().item() - start) / 1e-2
    assert change == pytest.approx(-found["exact"].labels * slope.norm().item(), rel=0.1)


def test_the_command(tmp_path, capsys):
    run = RunPlan(digits("estimator=st_gumbel_softmax", "steps=3", "evaluate_every=3", f"runs_dir={tmp_path}"))
    train_runs([run], PackLine(False), solo=True)
    path = run.path
    labels.main([str(path), "exact", "st_gumbel_softmax,temperature=0.5", "--draws", "4", "--images", "20"])
    printed = capsys.readouterr().out
    assert "step 3, 20 validation images" in printed and "| exact | 1.00 | 1.00 | 1.00 |" in printed
    assert printed.count("| st_gumbel_softmax,temperature=0.5 |") == 1
    with pytest.raises(UserError, match="--draws must be even and at least 2"):
        labels.main([str(path), "exact", "--draws", "3"])
