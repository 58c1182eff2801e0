import pytest
from matplotlib.font_manager import fontManager

from model_code.report import collection as collection_module
from model_code.report.classes import build_classes
from model_code.report.collection import EARLY_METRIC, average, collect_runs, is_smoke
from model_code.report.document import ImageGroup
from model_code.report.questions import Contrast
from model_code.report.standing import build_standing, choose_best
from model_code.report.verdicts import decide
from tests.unit.report.synthetic_runs import CIFAR10, Store, make_collection, make_run
from tests.unit.tracking.small_store import open_small_store


def test_no_runs_at_all(tmp_path):
    with open_small_store(tmp_path) as (_, client):
        found = collect_runs(client)
        assert (dict(found.groups), found.finished_count, found.get_best("any")) == ({}, 0, None)
        client.delete_experiment(client.get_experiment_by_name("darkroom").experiment_id)
        assert collect_runs(client).finished_count == 0


def test_the_latest_finished_run_of_a_seed_counts(opened, store):
    for seed in (1, 0):
        store.enter_supervised("latest", 0.5, seed, epochs=3)
    newest = store.enter_supervised("latest", 0.6, 1, epochs=3)
    for status in ("FAILED", "KILLED", "RUNNING"):
        store.enter_supervised("latest", 0.9, 1, epochs=3, status=status)
    store.enter_supervised("latest", 0.7, 1, epochs=2, budget="custom: epochs=2")
    opened[1].delete_run(store.enter_supervised("latest", 0.8, 1, epochs=3))
    found = collect_runs(opened[1])
    full, custom = found.groups["latest"]
    assert [(run.seed, run.metrics["validation/best_accuracy"]) for run in full.runs] == [(0, 0.5), (1, 0.6)]
    assert full.runs[1].run_id == newest
    assert (custom.budget, len(custom.runs)) == ("custom: epochs=2", 1)
    assert found.get_best("latest") == full


def test_what_a_run_says(opened, store):
    run_id = store.enter_supervised("whole", 0.8, 4, epochs=3, params={"network": "resnet18"})
    [run] = collect_runs(opened[1]).get_best("whole").runs
    assert (run.run_id, run.seed, run.epochs, run.kind, run.budget) == (run_id, 4, 3, "supervised", "full")
    assert (run.device, run.dataset, run.seconds) == ("cuda (NVIDIA H200)", "cifar10", 50)
    assert (run.params["network"], run.data_checksum, run.git_sha[:4]) == ("resnet18", "c" * 64, "0123")
    assert [step for step, _ in run.histories["validation/accuracy"]] == [1, 2, 3]
    assert [seconds for _, seconds in run.histories["train/seconds"]] == pytest.approx([40, 35, 33 + 1 / 3])
    assert run.get_at("validation/accuracy", 3) == pytest.approx(0.8)
    assert run.get_at("validation/accuracy", 4) is None
    assert tuple(run.report.per_class) == CIFAR10
    assert run.report.confusion_KK.sum() == 10_000
    assert run.report.confusion_KK.diagonal().sum() / 10_000 == pytest.approx(run.report.accuracy)


def test_the_time_of_a_run_is_what_it_says_without_interruptions(opened, store):
    store.enter("resumed", metrics={"total_seconds": 12.5})
    [run] = collect_runs(opened[1]).get_best("resumed").runs
    assert run.seconds == 12.5


def test_a_device_stands_with_the_precision_of_its_computation(opened, store):
    store.enter("half", tags={"engine": "bfloat16, channels last, eager, 147.5 MB of images resident"})
    [run] = collect_runs(opened[1]).get_best("half").runs
    assert run.device == "cuda (NVIDIA H200), bfloat16"
    store.enter("moved", tags={"engine": "bfloat16, eager", "resumed_on": "cpu to cuda after epoch 2"})
    [run] = collect_runs(opened[1]).get_best("moved").runs
    assert run.device == "cuda (NVIDIA H200), bfloat16 (resumed, cpu to cuda after epoch 2)"


def test_what_a_fine_tuned_run_started_from(opened, store):
    store.enter("tuned", tags={"pretrained_run_id": "p" * 32, "pretrained_sha256": "e" * 64})
    store.enter("scratch")
    found = collect_runs(opened[1])
    tuned, scratch = (found.get_best(name).latest for name in ("tuned", "scratch"))
    assert (tuned.pretrained_run_id, tuned.pretrained_sha256) == ("p" * 32, "e" * 64)
    assert (scratch.pretrained_run_id, scratch.pretrained_sha256) == ("", "")


def test_budgets_are_ranked(opened, store):
    for seed in range(2):
        store.enter_supervised("ranked", 0.1, seed, epochs=1, budget="smoke")
    for seed in range(3):
        store.enter_supervised("ranked", 0.1, seed, epochs=1, budget="smoke on shapes")
    store.enter_supervised("ranked", 0.2, epochs=1, budget="custom: epochs=1")
    for seed in range(2):
        store.enter_supervised("ranked", 0.3, seed, epochs=2, budget="custom: epochs=2")
    found = collect_runs(opened[1]).groups["ranked"]
    assert [group.budget for group in found] == ["custom: epochs=2", "custom: epochs=1", "smoke", "smoke on shapes"]
    # Histories are read of the group that is shown.
    assert [bool(group.runs[0].histories) for group in found] == [True, False, False, False]


def test_of_custom_budgets_with_as_many_seeds_the_one_of_most_epochs_is_the_best(opened, store):
    for epochs in (1, 12, 6):
        store.enter("net", {"test/accuracy": 0.5}, budget=f"custom: epochs={epochs}", epochs=epochs)
    assert collect_runs(opened[1]).get_best("net").budget.endswith("epochs=12")


def test_custom_runs_that_do_not_say_what_they_changed_stay_apart(opened, store):
    for seed in range(2):
        store.enter("unsaid", {"test/accuracy": 0.5}, seed=seed, tags={"budget": None, "profile": "custom"})
    store.enter("said", tags={"budget": None, "profile": "full", "kind": None})
    found = collect_runs(opened[1]).groups
    assert [len(group.runs) for group in found["unsaid"]] == [1, 1]
    assert found["said"][0].is_full


def test_other_runs_are_left_out(opened, store):
    before = collect_runs(opened[1]).finished_count
    store.enter("no seed", tags={"seed": None})
    store.enter("odd seed", tags={"seed": "x"})
    store.enter("no recipe", tags={"recipe": None})
    assert collect_runs(opened[1]).finished_count == before


def test_how_far_a_run_is_after_a_tenth_of_its_epochs(opened, store):
    store.enter_supervised("resnet18_cifar10_exp", 0.8, epochs=40)
    store.enter_supervised("resnet18_cifar10_exp2", 0.8, epochs=5)
    groups = collect_runs(store.client).groups
    for recipe, epoch in (("resnet18_cifar10_exp", 4), ("resnet18_cifar10_exp2", 1)):
        [run] = groups[recipe][0].runs
        assert run.metrics["validation/early_accuracy"] == run.get_at("validation/accuracy", epoch)


def test_early_accuracy_is_read_of_every_budget_and_compared_within_one(opened, store):
    for recipe, budgets in (("tuned", ("custom: epochs=20",)), ("scratch", ("full", "custom: epochs=20"))):
        for budget in budgets:
            for seed in range(3):
                accuracy = 0.8 if recipe == "tuned" else 0.7
                store.enter_supervised(recipe, accuracy, seed, epochs=20, budget=budget)
    contrast = Contrast("after a tenth of the epochs", "tuned", EARLY_METRIC, "scratch", EARLY_METRIC)
    verdict = decide(collect_runs(opened[1]), contrast)
    assert verdict.budget == "custom: epochs=20"
    assert len(verdict.pairs) == 3
    assert verdict.pairs[0].control.histories == {}, "of a group that is not shown nothing else is read"


def test_numbers_that_are_none_are_left_out(opened, store):
    history = {1: 0.5, 2: float("nan"), 3: 0.6}
    store.enter("nan", {"test/accuracy": float("nan"), "b": 1.0}, {"validation/loss": history})
    [run] = collect_runs(opened[1]).get_best("nan").runs
    assert ("test/accuracy" in run.metrics, run.metrics["b"]) == (False, 1.0)
    assert run.histories["validation/loss"] == ((1, 0.5), (3, 0.6))


@pytest.mark.parametrize("report", [None, "no json", "{}", '{"accuracy": 1, "per_class_accuracy": 5, "confusion": []}'])
def test_a_report_that_cannot_be_read_is_none(opened, store, report):
    store.enter("damaged", {"test/accuracy": 0.5}, report=report, seed=store.minutes)
    assert collect_runs(opened[1]).get_best("damaged").latest.report is None


def test_more_runs_than_a_page(opened, store, monkeypatch):
    for seed in range(7):
        store.enter("many", seed=seed)
    monkeypatch.setattr(collection_module, "PAGE_RUNS", 3)
    assert len(collect_runs(opened[1]).get_best("many").runs) == 7


def test_the_test_images_do_not_choose_the_best_recipe(tmp_path):
    with open_small_store(tmp_path) as (_, client):
        store = Store(client)
        for recipe, chosen_by, tested, budget in (
            ("a", 0.90, 0.70, "full"),
            ("b", 0.80, 0.95, "full"),
            ("c", 0.99, 0.99, "custom: epochs=1"),
            ("d", 0.99, 0.99, "smoke"),
        ):
            store.enter(recipe, {"validation/best_accuracy": chosen_by, "test/accuracy": tested}, budget=budget)
        store.enter("e", {"validation/best_accuracy": 0.5}, budget="smoke", dataset="shapes")
        best = choose_best(collect_runs(client))
    assert {dataset: group.recipe for dataset, group in best.items()} == {"cifar10": "a"}


def test_the_best_recipe_on_images_of_ones_own():
    def group(recipe, budget, accuracy, dataset, epochs=100):
        metrics = {"validation/best_accuracy": accuracy}
        return [make_run(recipe, budget=budget, dataset=dataset, epochs=epochs, metrics=metrics)]

    collection = make_collection(
        group("a", "custom: dataset=beans", 0.7, "beans"),
        group("a", "custom: dataset=pets, mean=(0.5, 0.4, 0.3), image_size=56", 0.6, "pets"),
        group("b", "custom: dataset=beans, batch_size=64, learning_rate=0.05", 0.8, "beans", epochs=20),
        group("b", "custom: dataset=beans, epochs=500", 0.9, "beans", epochs=500),
        group("b", "custom: dataset=birds, epochs=5", 0.9, "birds", epochs=5),
        group("b", "custom: dataset=birds, epochs=9", 0.5, "birds", epochs=9),
        group("b", "smoke on shapes", 0.9, "shapes"),
        group("c", "full", 0.1, "cifar10"),
        group("c", "custom: epochs=500", 0.9, "cifar10", epochs=500),
    )
    best = {dataset: (group.recipe, group.budget) for dataset, group in choose_best(collection).items()}
    assert best == {
        "beans": ("b", "custom: dataset=beans, batch_size=64, learning_rate=0.05"),
        "pets": ("a", "custom: dataset=pets, mean=(0.5, 0.4, 0.3), image_size=56"),
        "birds": ("b", "custom: dataset=birds, epochs=9"),
        "cifar10": ("c", "full"),
    }
    table = build_standing(collection).blocks[1]
    assert table.columns == ("data set", "recipe", "validation accuracy", "seeds", "budget", "runs")
    budget = table.rows[0][table.columns.index("budget")]
    assert budget.text.endswith("- not comparable")
    assert budget.is_caution


def test_without_a_full_or_custom_run_there_is_no_best_recipe():
    section = build_standing(make_collection([make_run("a", budget="smoke")]))
    assert [block.text for block in section.blocks[1:]] == ["No full or custom run of a classifier or a backbone yet."]


def test_a_pretrained_backbone_can_be_the_best_recipe(tmp_path):
    with open_small_store(tmp_path) as (_, client):
        store = Store(client)
        store.enter("a", {"validation/best_accuracy": 0.6, "test/accuracy": 0.7}, dataset="food11")
        metrics = {"validation/best_accuracy": 0.8, "test/linear_accuracy": 0.75, "test/knn_accuracy": 0.5}
        store.enter("b", metrics, dataset="food11", kind="simsiam")
        store.enter("c", {"validation/best_accuracy": 0.9}, dataset="food11", kind="random_features")
        store.enter_supervised("d", 0.5)
        section = build_standing(collect_runs(client))
    table = section.blocks[1]
    assert table.columns[3:5] == ("test accuracy", "macro-F1")
    texts = [[cell.text for cell in row[:5]] for row in table.rows]
    assert texts == [
        ["cifar10", "d", "50.00 %", "49.60 %", "49.60 %"],
        ["food11", "b", "80.00 %", "75.00 %", "-"],
    ]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("smoke", True),
        ("smoke on shapes", True),
        ("full", False),
        ("custom: dataset=smoke on shapes", False),
        ("smokeless", False),
    ],
)
def test_what_a_smoke_budget_is(budget, expected):
    assert is_smoke(budget) is expected
    assert make_collection([make_run("a", budget=budget)]).groups["a"][0].is_smoke is expected


def test_the_spread_is_that_of_a_sample():
    assert average([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.1))
    assert average([0.5]) == (0.5, None)


def test_the_best_budget_of_a_recipe_on_each_data_set_is_shown_whole(opened, store):
    for budget, dataset in (
        ("full", "cifar10"),
        ("custom: epochs=2", "cifar10"),
        ("custom: dataset=shapes, epochs=3", "shapes"),
        ("smoke on shapes", "shapes"),
        ("smoke on pets", "pets"),
    ):
        store.enter_supervised("shown", 0.5, 0, epochs=3, budget=budget, dataset=dataset)
    found = collect_runs(opened[1])
    best = [group for group in found.list_best("supervised") if group.recipe == "shown"]
    assert [group.name for group in best] == ["shown", "shown on shapes", "shown on pets"]
    assert [group.budget for group in best] == ["full", "custom: dataset=shapes, epochs=3", "smoke on pets"]
    for group in found.groups["shown"]:
        assert all(
            (run.report is not None) == bool(run.get_at("validation/loss", 1)) == (group in best) for run in group.runs
        )
    section = build_classes(found)
    assert {"shown", "shown on shapes", "shown on pets"} <= {
        block.title.rpartition(" (")[0] for block in section.blocks if isinstance(block, ImageGroup)
    }
    names = [image.name for block in section.blocks if isinstance(block, ImageGroup) for image in block.images]
    assert len(set(names)) == len(names)


def test_a_confusion_matrix_whose_names_no_font_has_says_which_number_is_which(opened, store, monkeypatch):
    own = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(fontManager, "ttflist", own)
    store.enter_supervised("foreign", 0.5, 0, classes=("チーズ", "class 7", "bread"), images=300, epochs=2)
    section = build_classes(collect_runs(opened[1]))
    captions = {block.title: block.caption for block in section.blocks if isinstance(block, ImageGroup)}
    (foreign,) = [caption for title, caption in captions.items() if title.startswith("foreign ")]
    assert foreign.endswith(" No font here has the characters of some names: class 0 is チーズ.")
    assert not any("No font" in caption for title, caption in captions.items() if not title.startswith("foreign "))
