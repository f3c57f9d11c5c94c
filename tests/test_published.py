"""Published numbers: as printed, only those that were read, and each beside runs of its own model only."""

import json
import math

import pytest
from test_plan import composer  # noqa: F401  a fixture

from analysis.papers.published import BOUNDS, FILE, all_published, differences, published, sources
from analysis.records.format import columns
from training.config.identity import leaves

VALUES = all_published()
COLUMNS = ["nvil", "darn", "muprop", "straight_through", "annealed_straight_through", "gumbel_softmax"]
COLUMNS += ["st_gumbel_softmax"]
# As printed, typed in again from the papers: what is stored must be these.
JANG_TABLE_1 = {
    "sbn_bernoulli": [72.0, 59.7, 58.9, 58.9, 58.7, 58.5, 59.3],
    "sbn_categorical": [73.1, 67.9, 63.0, 61.8, 61.1, 59.0, 59.7],
    "vae_bernoulli": [112.2, 110.9, 109.7, 116.0, 111.5, 105.0, 111.5],
    "vae_categorical": [110.6, 128.8, 107.0, 110.9, 107.8, 101.5, 107.8],
}
LATENTS = {task: f"task.latents={20 if task.endswith('categorical') else 200}" for task in JANG_TABLE_1}
VAE = {"task.latents": 200, "task.categories": 2, "task.hidden": "[]", "task.kl": "auto", "data.binarization": "static"}


def flat(runs):
    return [columns(dict(leaves(run.config))) for run in runs]


def chosen(**wanted):
    """The values whose fields are ``wanted``."""
    return [v for v in VALUES if all(getattr(v, name) == value for name, value in wanted.items())]


# --- what is there ---------------------------------------------------------------------------------------------------


def test_every_value_says_what_it_is_and_where_it_was_read():
    metrics = {*BOUNDS, "pseudo_elbo", "accuracy", "ratio", "epochs", "loss"}
    metrics |= {"gradient_variance", "log_gradient_variance"}
    for value in VALUES:
        assert value.citation and value.short and value.table and value.setting, value
        assert value.confidence.startswith("read "), value
        assert value.metric in metrics and value.split in ("train", "valid", "test"), value
        assert math.isfinite(value.value) and (value.value < 0 or value.metric not in ("elbo", "pseudo_elbo")), value
        assert value.value > 0 or value.metric not in ("nll", "negative_bound", "accuracy", "ratio"), value


def test_nothing_remembered_or_second_hand():
    """Tables that nobody here has read are not there, whoever may quote them."""
    by_source = {value.source: value for value in VALUES}
    assert set(by_source) == set(sources())
    citations = " ".join(value.citation for value in by_source.values())
    for unread in ("1703.07370", "2006.10680", "2304.08612", "2111.05300", "1402.0030", "1602.06725", "2106.08056"):
        assert unread not in citations, unread
    of_rebar = chosen(source="tucker2017_readme")
    assert {value.metric for value in of_rebar} == {"log_gradient_variance"} and len(of_rebar) == 5
    by_eye = [value for value in VALUES if "by eye" in value.confidence]
    assert {value.metric for value in by_eye} == {"gradient_variance"}
    assert {v.source for v in by_eye} == {"shi2022", "dimitriev2021", "kool2020"}
    remembered = (-102.75, -102.14, -101.89, 668.03, 676.87, 692.37, -69.17, -46.44, 126.85, 124.66, -101.6, -99.08)
    assert not {abs(value.value) for value in VALUES} & set(map(abs, remembered))


def test_no_value_stands_twice_for_the_same_run():
    keys = [(v.source, v.table, v.task, v.data, v.method, v.setting, v.metric, v.split) for v in VALUES]
    assert len(keys) == len(set(keys))
    configs = [
        (v.source, v.task, v.data, v.estimator, v.split, json.dumps(v.config, sort_keys=True))
        for v in VALUES
        if v.metric in BOUNDS and v.estimator and None not in v.config.values() and v.table != "training curves"
    ]
    assert len(configs) == len(set(configs))


PRINTED = [
    (dict(source="maddison2017", table="Table 1", data="binarized_mnist", split="test", method="Concrete"),
     [107.3, 104.9, 104.3, 102.1, 99.9, 99.5, 92.1, 89.5, 88.5, 87.9, 86.3, 85.7]),
    (dict(source="maddison2017", table="Table 1", data="omniglot", split="train", method="VIMCO"),
     [112.2, 110.8, 110.0, 104.8, 103.6, 103.6, 110.3, 102.3, 100.8, 105.7, 101.1, 95.2]),
    (dict(source="maddison2017", table="Figure 4", split="test", method="VIMCO"), [61.4, 54.5, 51.8, 59.7, 53.5, 50.2]),
    (dict(source="maddison2017", table="Figure 4", split="train", method="Concrete"),
     [54.2, 49.2, 48.2, 51.6, 46.9, 45.9]),
    (dict(source="maddison2017", table="Table 2", data="binarized_mnist", split="test"),
     [91.9, 89.0, 88.4, 91.4, 89.4, 89.7, 92.5, 90.5, 90.5, 87.9, 86.6, 86.0, 87.4, 86.7, 86.7, 88.2, 87.4, 87.2]),
    (dict(source="gu2016", table="Table 2", data="mnist"),
     [63.2, 57.7, 56.7, 56.1, 57.2, 100.6, 62.7, 57.2, 54.4, 55.8]),
    (dict(source="gu2016", table="Table 3", method="MuProp-C"), [113.6, 100.4, 101.1, 92.9, 108.6]),
    (dict(source="grathwohl2018", table="Table 1", method="RELAX"),
     [-78.13, -111.20, -98.00, -56.12, -116.57, -108.54]),
    (dict(source="grathwohl2018", table="validation table", method="REBAR"),
     [-114.32, -101.20, -111.12, -122.44, -115.83, -127.51]),
    (dict(source="yin2019", method="ARM", data="binarized_mnist"), [107.2, 98.4, 96.7]),
    (dict(source="yin2019", method="REBAR", data="omniglot"), [117.7, 118.0, 110.8]),
    (dict(source="kool2020", method="Unordered set", split="valid", metric="negative_bound"), [91.3, 91.2]),
    (dict(source="paulus2021", table="MNIST table", method="GR-MC1000"),
     [100.5, 97.0, 97.6, 93.5, 96.5, 92.5, 96.8, 92.2]),
    (dict(source="paulus2021", table="MNIST table", method="GS"), [98.2, 96.4, 95.7, 93.8, 95.5, 92.3, 96.8, 94.3]),
    (dict(source="jang2017", table="Table 2", metric="accuracy"), [92.6, 92.4, 93.6]),
    (dict(source="jang2017", metric="ratio"), [2.0, 9.9]),
    (dict(source="tucker2017_readme"), [-3.86, -3.66, -0.72, -0.71, 2.27]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"), PRINTED, ids=lambda x: " ".join(x.values()) if isinstance(x, dict) else ""
)
def test_rows_are_as_printed(row, expected):
    assert [value.value for value in chosen(**row)] == expected


def test_traps_stand_beside_the_values():
    def note(**wanted):
        (value,) = chosen(**wanted)
        return value.note

    assert "variance normalisation" in note(source="jang2017", task="vae_bernoulli", method="SF")
    for task in ("vae_bernoulli", "vae_categorical"):
        assert "copying error" in note(source="jang2017", task=task, method="ST Gumbel-S.")
        assert "copying error" in note(source="jang2017", task=task, method="Annealed ST")
    assert "shifted by one column" in note(source="grathwohl2018", table="Table 1", value=-110.4)
    assert "102.7" in note(source="maddison2017", value=1002.7)
    assert "thresholds" in note(source="yin2019", value=57.9)
    assert "200 variables of 10" in note(source="gu2016", value=107.8)


# --- beside which runs they stand ------------------------------------------------------------------------------------


def test_the_experiment_of_table_1_has_all_its_numbers_and_no_others(composer):  # noqa: F811
    """Through the real configs: sources and names of conf/ and of published.json fit each other."""
    runs, _ = composer
    names = ",".join([*COLUMNS, "reinforce"])
    got = {}
    for task in JANG_TABLE_1:
        got[task] = []
        for config in flat(runs(f"task={task}", "data=binarized_mnist", f"estimator={names}", LATENTS[task])):
            value = published(task, "binarized_mnist", config["estimator"], config)
            got[task].append(value and value.value)
    assert got == {task: [*row, None] for task, row in JANG_TABLE_1.items()}
    assert all(published("vae_bernoulli", "digits", name, VAE) is None for name in COLUMNS)


@pytest.mark.parametrize(
    "other",
    [
        {"task.latents": 100},
        {"task.hidden": "[200, 200]"},
        {"task.layers": 2},
        {"task.categories": 4},
        {"task.likelihood": "gaussian"},
        {"task.latents": float("nan")},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_number_never_stands_beside_another_model(other):
    assert published("vae_bernoulli", "binarized_mnist", "darn", VAE).value == 110.9
    assert published("vae_bernoulli", "binarized_mnist", "darn", {**VAE, **other}) is None
    assert published("vae_bernoulli", "binarized_mnist", "darn", {}) is None


def test_the_source_chooses_between_papers_and_nothing_else_is_lent():
    def beside(source, estimator, **more):
        value = published("vae_bernoulli", "binarized_mnist", estimator, {**VAE, "source": source, **more})
        return value and value.value

    assert [beside(source, "muprop") for source in (None, "jang2017", "yin2019", "")] == [109.7, 109.7, 113.0, None]
    assert beside("gu2016", "muprop", **{"estimator.centring": True}) == 113.6
    assert beside("gu2016", "gumbel_softmax") is None
    relaxed = {"task.kl": "relaxed"}
    assert beside("jang2017", "gumbel_softmax") == 105.0 and beside("jang2017", "gumbel_softmax", **relaxed) is None
    assert beside("maddison2017", "gumbel_softmax") is None
    assert beside("maddison2017", "gumbel_softmax", **relaxed) == 107.3


def test_hyperparameters_that_are_the_method():
    net = {**VAE, "source": "maddison2017"}
    bounds = {
        m: published("vae_bernoulli", "omniglot", "vimco", {**net, "estimator.num_samples": m}) for m in (5, 7, 50)
    }
    assert [value and value.value for value in bounds.values()] == [113.5, None, 113.0]
    train = published("vae_bernoulli", "omniglot", "vimco", {**net, "estimator.num_samples": 5}, split="train")
    assert train.value == 110.8
    rao = {"source": "paulus2021", "task.categories": 8, "batch_size": 20, "estimator.num_inner": 100}
    assert published("vae_categorical_8ary", "binarized_mnist", "gumbel_rao_100", rao).value == 96.8
    assert published("vae_categorical", "binarized_mnist", "gumbel_rao", {**rao, "batch_size": 100}) is None


def test_names_may_be_extended_but_not_shortened():
    net = {**VAE, "task.hidden": "[200, 200]", "task.nonlinearity": "tanh", "source": "grathwohl2018"}
    value = published("vae_bernoulli_nonlinear", "binarized_mnist", "relax", net, split="train")
    assert (value.value, value.nats) == (-78.13, 78.13)
    assert published("vae", "binarized_mnist", "relax", net, split="train") is None
    assert published("vae_bernoullinonlinear", "binarized_mnist", "relax", net, split="train") is None
    plain = {**VAE, "data.binarization": "threshold"}
    assert published("vae_bernoulli", "binarized_mnist", "arm_2", {**plain, "source": "yin2019"}).value == 107.2
    assert published("vae_bernoulli", "binarized_mnist", "arm_own", {**plain, "source": "yin2019"}) is None


def test_what_the_paper_leaves_open_is_beside_no_run():
    """``null`` in the file: the number is listed, and no run is its model."""
    content = json.loads(FILE.read_text())
    open_nets = [b for b in content["tables"] if None in b["config"].values()]
    assert open_nets
    for block in open_nets:
        config = {name: wanted for name, wanted in block["config"].items() if wanted is not None}
        for row in block["values"]:
            matching = {**config, **row.get("config", {}), "source": block["source"]}
            value = published(block["task"], block["data"], row["estimator"], matching, block["split"])
            assert value is None or value.table != block["table"], block["setting"]


def test_differences_of_settings():
    value = published("vae_bernoulli", "binarized_mnist", "gumbel_softmax", VAE)
    text = differences(value, {"optimizer": "adam", "test_samples": 1000.0, "steps": 5000.0})
    assert text == "optimizer sgd (here adam), steps not stated (here 5000)"
    (value,) = chosen(source="maddison2017", table="Figure 4", value=51.8)
    assert differences(value, {"test_samples": 1000.0}) == "test samples 100 (here 1000)"
