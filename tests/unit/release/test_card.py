import re

import numpy as np
import pytest
from scipy.stats import binomtest

from model_code.release.card import LONGEST_SUMMARY, summarise, write_card
from model_code.release.gate import judge
from model_code.release.gate_rules import GateRules
from model_code.release.known_limits import FEW_IMAGES, list_limits
from serving.bundle.manifest import (
    BatchCertificate,
    BatchTiming,
    Calibration,
    Certificate,
    Manifest,
    Reliability,
    Selection,
    TemperatureTrial,
    Thresholds,
    Timing,
    Variant,
)

CLASSES = ("cat", "dog", "emu")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
RUN, DATA, GIT = "4" * 32, "d" * 64, "a" * 40


def certify(precision, provider=CPU, agreement=1.0, refusal=None):
    return Certificate(
        precision=precision,
        provider=provider,
        sha256="0" * 64,
        split="test",
        count=600,
        torch_accuracy=0.9,
        torch_accuracy_interval=(0.8731, 0.9229),
        accuracy_interval=(0.8712, 0.9213),
        agreement_interval=(0.9811, 1.0),
        opset=20,
        versions={"onnxruntime-gpu": "1.23.0"},
        batches=tuple(
            BatchCertificate(
                batch_size=size,
                max_difference=1.5e-6 * size,
                mean_difference=1e-7,
                top1_agreement=agreement,
                accuracy=0.8983,
            )
            for size in (1, 7, 64)
        ),
        refusal=refusal,
    )


def time_batches(provider=CPU, sizes=(1, 8, 64), factor=1.0):
    return Timing(
        provider=provider,
        machine="Xeon | 2",
        threads=2,
        batches=tuple(
            BatchTiming(
                batch_size=size,
                runs=50,
                median_ms=factor * (3.21 + size),
                p99_ms=factor * (9.87 + size),
                pictures_per_s=size * 1234 / factor,
            )
            for size in sizes
        ),
        peak_memory_bytes=300 * 2**20,
    )


def make_trial(**changes):
    values = {
        "fitted": 1.4321,
        "refusal": None,
        "folds": 10,
        "nll_gain": 0.0567,
        "nll_gain_interval": (0.0123, 0.0999),
        "ece_change": -0.0234,
        "ece_change_interval": (-0.0345, 0.0011),
    }
    return TemperatureTrial(**(values | changes))


def make_calibration(classes=3, trial=None, **changes):
    trial = trial or make_trial()
    selection = Selection(split="test", count=600, answered=480, wrong=6, error_interval=(0.0046, 0.027))
    of_class = Selection(split="test", count=200, answered=80, wrong=2, error_interval=(0.0030, 0.0874))
    values = {
        "target_error": 0.01,
        "overall": 0.9,
        "per_class": (0.7123, None, 0.9) + (0.5,) * (classes - 3),
        "selections": (selection,),
        "confidence": 0.95,
        "is_own": (True, False, False) + (True,) * (classes - 3),
        "by_class": (of_class,) * classes,
    }
    return Calibration(
        temperature=trial.temperature,
        reliability=(
            Reliability(
                split="test",
                count=600,
                ece_before=0.0432,
                ece_after=0.0123,
                bins_before=(),
                bins_after=(),
                ece_before_interval=(0.0321, 0.0543),
                ece_after_interval=(0.0012, 0.0234),
            ),
        ),
        thresholds=Thresholds(**(values | changes)),
        trial=trial,
    )


def age(calibration):
    """What a manifest of an earlier release says of the same model."""
    left_out = {"trial": True, "thresholds": {"confidence", "is_own", "by_class"}}
    left_out["reliability"] = {"__all__": {"ece_before_interval", "ece_after_interval"}}
    facts = calibration.model_dump(exclude=left_out)
    facts["thresholds"]["selections_overall"] = facts["thresholds"]["selections"]
    return Calibration.model_validate(facts)


def make_manifest(**changes):
    variants = (
        Variant(
            precision="fp32",
            file="model.onnx",
            sha256="1" * 64,
            size_bytes=44_800_123,
            certificates=(certify("fp32"),),
            timings=(time_batches(),),
        ),
        Variant(
            precision="int8",
            file=None,
            sha256="2" * 64,
            size_bytes=11_200_456,
            certificates=(certify("int8", agreement=0.8765, refusal="agreement 0.8765, allowed is 0.99"),),
            timings=(time_batches(factor=0.5),),
        ),
    )
    values = {
        "name": "shapes",
        "classes": CLASSES,
        "image_size": 32,
        "resize_size": 36,
        "opset": 20,
        "variants": variants,
        "calibration": make_calibration(),
        "golden_sha256": "3" * 64,
        "recipe": "resnet18_cifar10_strong",
        "run_id": RUN,
        "dataset": "shapes",
        "data_checksum": DATA,
        "git_sha": GIT,
        "accuracy_fraction": 0.9017,
        "versions": {"torch": "2.11.0", "onnx": "1.19.0"},
        "created": "2026-01-02T03:04:05+00:00",
    }
    return Manifest(**(values | changes))


def make_verdict(classes=CLASSES, has_champion=True, per_class=200, split="test", rules=None, **more):
    """Emu got worse, the others better; 13 of 20 answers are right at first."""
    labels_N = np.repeat(np.arange(len(classes)), per_class)
    place_N = np.tile(np.arange(per_class) / per_class, len(classes))
    was_right_N = np.where(labels_N == 2, place_N < 0.95, place_N < 0.65)
    is_right_N = np.where(labels_N == 2, place_N < 0.75, place_N < 0.9)
    wrong_N = (labels_N + 1) % len(classes)
    return judge(
        labels_N=labels_N,
        challenger_N=np.where(is_right_N, labels_N, wrong_N),
        champion_N=np.where(was_right_N, labels_N, wrong_N) if has_champion else None,
        classes=classes,
        split=split,
        champion_version="4" if has_champion else None,
        rules=rules or GateRules(),
        **more,
    )


def read_sections(card):
    """Section title -> its text."""
    parts = re.split(r"^## (.+)$", card, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def read_rows(section):
    """Rows of a section's tables as lists of cells; every row is as wide as its table's head."""
    tables, rows = [], []
    for line in [*section.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            tables.append(rows)
            rows = []
    for table in tables:
        assert len({len(row) for row in table}) == 1
        assert set(table[1]) == {"---"}
    return [row for table in tables for row in table[2:]]


def test_the_card_has_every_section_with_its_facts():
    verdict = make_verdict(latency_ms=4.21, size_bytes=44_800_123)
    card = write_card(make_manifest(), verdict, "7")
    assert card.startswith("# shapes version 7\n")
    sections = read_sections(card)
    assert list(sections) == [
        *("Verdict", "Data", "Recipe", "Accuracy", "Classes", "Calibration", "Certificates", "Speed and memory"),
        *("Known limits", "Provenance"),
    ]
    for section, facts in {
        "Verdict": (
            f"{verdict.challenger_accuracy:.4f}",
            "version 4",
            "**not promoted**",
            *verdict.refusals,
            "4.21 ms",
        ),
        "Data": ("shapes", DATA, "resized to 36", "32 x 32", "600 test images", "cat, dog, emu"),
        "Recipe": ("resnet18_cifar10_strong", RUN, "full"),
        "Accuracy": ("0.8500 (", "0.9017", "0.7500"),
        "Calibration": (
            "Temperature 1.4321",
            "negative log-likelihood -0.0567 (95 % CI -0.0999 to -0.0123)",
            "ECE -0.0234 (95 % CI -0.0345 to +0.0011)",
            "0.0432 (95 % CI 0.0321 to 0.0543)",
            "0.0123 (95 % CI 0.0012 to 0.0234)",
            "Target error 1.00 % among accepted predictions. With 95 % confidence",
            "480 (80.00 %)",
            "6 (1.25 %, 95 % CI 0.46 % to 2.70 %)",
        ),
        "Certificates": ("9.6e-05", "0.8983 (0.8712 to 0.9213)", "0.8765", "44,800,123 bytes", "1" * 64, "1, 7, 64"),
        "Provenance": (RUN, DATA, GIT, "1" * 64, "torch 2.11.0", "2026-01-02T03:04:05"),
    }.items():
        for fact in facts:
            assert fact in sections[section], (section, fact)
    low, high = binomtest(510, 600).proportion_ci(0.95, method="exact")
    assert read_rows(sections["Accuracy"]) == [
        ["this model", "test", f"0.8500 ({low:.4f} to {high:.4f})", f"{verdict.challenger_macro_f1:.4f}"],
        ["in training", "test", "0.9017", "-"],
        ["champion, version 4", "test", "0.7500", f"{verdict.champion_macro_f1:.4f}"],
    ]
    assert verdict.challenger_macro_f1 != verdict.challenger_accuracy


def test_the_card_names_the_figure_that_decided():
    rows = {}
    for metric in ("accuracy", "macro-f1"):
        verdict = make_verdict(rules=GateRules(metric=metric, min_gain=0.01))
        section = read_sections(write_card(make_manifest(), verdict))["Verdict"]
        rows[metric] = {row[0]: row[1:] for row in read_rows(section)}
        low, high = verdict.difference_interval
        name = {"accuracy": "accuracy", "macro-f1": "macro-F1"}[metric]
        points = f"{100 * verdict.difference:+.2f} points (95 %: {100 * low:+.2f} to {100 * high:+.2f})"
        chance = ", interval above 0" if metric == "macro-f1" else ""
        assert rows[metric][f"difference of {name}"] == [points, f"above 0, at least 1 points{chance}"]
    assert [rows[metric]["McNemar p"][1] for metric in rows] == ["below 0.05", ""]


def test_a_card_of_an_earlier_verdict_has_no_macro_f1():
    verdict = make_verdict().model_copy(update={"challenger_macro_f1": None, "champion_macro_f1": None})
    rows = read_rows(read_sections(write_card(make_manifest(), verdict))["Accuracy"])
    assert [row[-1] for row in rows] == ["-"] * 3


def test_the_table_of_classes_is_that_of_the_verdict():
    verdict = make_verdict()
    rows = read_rows(read_sections(write_card(make_manifest(), verdict))["Classes"])
    assert [row[:6] for row in rows] == [
        ["cat", "200", "0.9000", "0.6500", "50", "0"],
        ["dog", "200", "0.9000", "0.6500", "50", "0"],
        ["emu", "200", "0.7500", "0.9500", "0", "40"],
    ]
    assert [float(row[6]) for row in rows] == pytest.approx([1, 1, 2**-40], rel=0.1)
    assert [float(row[7]) for row in rows] == pytest.approx([1, 1, 3 * 2**-40], rel=0.1)


def test_speed_is_told_of_every_batch_and_of_variants_that_are_not_offered():
    section = read_sections(write_card(make_manifest(), make_verdict()))["Speed and memory"]
    rows = read_rows(section)
    assert [(row[0], row[2], row[3], row[-1]) for row in rows] == [
        ("fp32", "1", "4.21", "yes"),
        ("fp32", "8", "11.21", "yes"),
        ("fp32", "64", "67.21", "yes"),
        ("int8", "1", "2.10", "no"),
        ("int8", "8", "5.61", "no"),
        ("int8", "64", "33.60", "no"),
    ]
    assert all(row[1] == r"CPU: Xeon \| 2, 2 threads" for row in rows)
    assert {row[6] for row in rows} == {"300 MiB"}
    assert rows[2][5] == "78,976"
    assert "CUDA: not measured" in section
    assert "CPU: not measured" not in section


def test_the_refusal_of_a_variant_is_told():
    certificates = read_rows(read_sections(write_card(make_manifest(), make_verdict()))["Certificates"])
    assert [row[-1] for row in certificates] == ["within the limits", "refused: agreement 0.8765, allowed is 0.99"]
    assert "agreement 0.8765, allowed is 0.99" in summarise(make_manifest(), make_verdict())


def test_a_batch_size_that_was_not_timed_is_said_to_be_missing():
    fp32 = make_manifest().variants[0]
    few = fp32.model_copy(update={"timings": (time_batches(sizes=(1, 128)),)})
    none = fp32.model_copy(update={"timings": ()})
    rows = read_rows(read_sections(write_card(make_manifest(variants=(few,)), make_verdict()))["Speed and memory"])
    assert [(row[2], row[3]) for row in rows] == [
        ("1", "4.21"),
        ("8", "not measured"),
        ("64", "not measured"),
        ("128", "131.21"),
    ]
    manifest = make_manifest(variants=(none,))
    rows = read_rows(read_sections(write_card(manifest, make_verdict()))["Speed and memory"])
    assert [(row[2], row[3]) for row in rows] == [(size, "not measured") for size in ("1", "8", "64")]
    assert "Times and memory were not measured." in list_limits(manifest, make_verdict())


def test_a_cuda_device_at_the_release_is_told():
    fp32 = make_manifest().variants[0]
    both = fp32.model_copy(
        update={
            "certificates": (certify("fp32"), certify("fp32", CUDA)),
            "timings": (time_batches(), time_batches(CUDA)),
        }
    )
    card = write_card(make_manifest(variants=(both,)), make_verdict())
    assert "CUDA: not measured" not in card
    assert "CUDA device" not in card
    assert len(read_rows(read_sections(card)["Speed and memory"])) == 6
    assert "Never compared with the trained network on a CUDA device" in write_card(make_manifest(), make_verdict())


def test_a_card_without_champion_calibration_and_test_images():
    manifest = make_manifest(calibration=None, accuracy_fraction=None, git_sha="unknown")
    verdict = make_verdict(has_champion=False, split="validation")
    card = write_card(manifest, verdict)
    sections = read_sections(card)
    assert card.startswith("# shapes\n")
    assert "no champion to compare with: **promoted**" in sections["Verdict"]
    assert "Not measured" in sections["Calibration"]
    assert "| in training | test | not measured |" in sections["Accuracy"]
    rows = read_rows(sections["Classes"])
    assert [row[3:] for row in rows] == [["-"] * 5] * 3
    limits = sections["Known limits"]
    for fact in (
        "No test images",
        "compared with no champion",
        "not calibrated",
        "commit that released it is unknown",
    ):
        assert fact in limits
    assert not re.search(r"\b(None|nan)\b", card)
    short = summarise(manifest, verdict)
    assert "Calibration: not measured" in short
    assert "no champion to compare with: promoted" in short


def test_limits_follow_from_the_facts():
    limits = "\n".join(list_limits(make_manifest(), make_verdict()))
    low, high = binomtest(150, 200).proportion_ci(0.95, method="exact")
    facts = (
        f"emu, of whose 200 images 75.0 % are labelled rightly (95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        "3 classes and nothing else",
        "36 pixels and the middle 32 x 32",
        "off by 1.23 points",
        "1 of 3 classes",
        "120 have no accepted prediction",
        "1.25 % are wrong",
        "not proven",
        "Xeon | 2 only",
    )
    for fact in facts:
        assert fact in limits, fact
    for absent in ("smoke", "settings of its own", "No test images", "fewer than", "never tested", "made it worse"):
        assert absent not in limits, absent
    # int8 is not offered, so nobody is answered by it.
    assert "int8" not in limits


@pytest.mark.parametrize(
    ("manifest", "verdict", "profile", "fact"),
    [
        ({}, {}, "smoke", "no result"),
        ({}, {}, "custom", "settings of its own (custom profile)"),
        ({"git_sha": GIT + "-dirty"}, {}, "full", "Files differed"),
        ({"resize_size": 32}, {}, "full", "its middle square is read"),
        ({}, {"per_class": 20}, "full", f"cat, dog, emu: fewer than {FEW_IMAGES} images"),
        ({}, {"classes": (*CLASSES, "fox")}, "full", "Weakest class: emu"),
    ],
)
def test_each_limit_appears_where_it_holds(manifest, verdict, profile, fact):
    assert fact in "\n".join(list_limits(make_manifest(**manifest), make_verdict(**verdict), profile))
    assert fact in write_card(make_manifest(**manifest), make_verdict(**verdict), profile=profile)


def select(**changes):
    values = {"split": "test", "count": 600, "answered": 480, "wrong": 6, "error_interval": (0.0046, 0.027)}
    return Selection(**(values | changes))


@pytest.mark.parametrize(
    ("selection", "fact"),
    [
        (select(error_interval=(0.001, 0.009)), "target 1.00 %)."),
        (select(error_interval=(0.011, 0.03)), "the target is missed"),
        (select(answered=0, wrong=0, error_interval=(0, 1)), "none has an accepted prediction"),
    ],
)
def test_the_limit_of_thresholds_says_whether_the_target_is_met(selection, fact):
    manifest = make_manifest(calibration=make_calibration(selections=(selection,), overall=None))
    assert fact in "\n".join(list_limits(manifest, make_verdict()))
    assert "Pooled threshold: none is supported" in read_sections(write_card(manifest, make_verdict()))["Calibration"]
    short = summarise(manifest, make_verdict())
    assert "target error 1.00 % among accepted predictions" in short
    assert ("no threshold is supported" in short) is (selection.answered == 0)


def test_the_card_says_for_whom_the_target_error_holds():
    rows = read_rows(read_sections(write_card(make_manifest(), make_verdict()))["Calibration"])
    assert [row[:4] for row in rows if row[0] in CLASSES] == [
        ["cat", "0.7123", "this class", "200"],
        ["dog", "no threshold", "-", "200"],
        ["emu", "0.9000", "the pool", "200"],
    ]
    assert rows[-1][4:] == ["80 (40.00 %)", "2 (2.50 %, 95 % CI 0.30 % to 8.74 %)"]


def test_a_temperature_that_is_not_used_has_its_reason_on_the_card():
    manifest = make_manifest(calibration=make_calibration(trial=make_trial(refusal="the gain is not significant")))
    section = read_sections(write_card(manifest, make_verdict()))["Calibration"]
    assert "No temperature (1): the fitted one, 1.4321, is not used, because the gain is not significant." in section
    assert "10-fold cross-validation: negative log-likelihood -0.0567" in section
    few = make_trial(refusal="too few", folds=0, nll_gain=None, ece_change=None)
    manifest = make_manifest(calibration=make_calibration(trial=few))
    section = read_sections(write_card(manifest, make_verdict()))["Calibration"]
    assert "because too few." in section
    assert "cross-validation" not in section


def test_a_model_without_any_threshold_says_so():
    nothing = select(answered=0, wrong=0, error_interval=(0, 1))
    calibration = make_calibration(per_class=(None,) * 3, overall=None, is_own=(False,) * 3, selections=(nothing,))
    manifest = make_manifest(calibration=calibration)
    section = read_sections(write_card(manifest, make_verdict()))["Calibration"]
    assert "Target error 1.00 % among accepted predictions: no threshold." in section
    assert "With 95 % confidence" not in section
    assert "3 of 3 classes have no threshold" in "\n".join(list_limits(manifest, make_verdict()))


def test_the_card_of_an_earlier_release_promises_nothing():
    manifest = make_manifest(calibration=age(make_calibration()))
    card = write_card(manifest, make_verdict())
    section = read_sections(card)["Calibration"]
    assert "fitted on validation images without cross-validation" in section
    assert "Target error 1.00 % among accepted predictions, without a margin." in section
    assert ["cat", "0.7123"] in read_rows(section)
    assert [row[0] for row in read_rows(section) if len(row) == 5] == ["used", "one for all"]
    assert not re.search(r"With 95 % confidence|95 % CI 0.0|None", section)
    assert "The thresholds have no margin" in read_sections(card)["Known limits"]
    assert "no margin" not in write_card(make_manifest(), make_verdict())
    summarise(manifest, make_verdict())


def test_an_offered_variant_that_labels_differently_is_a_limit():
    int8 = (
        make_manifest()
        .variants[1]
        .model_copy(update={"file": "model.int8.onnx", "certificates": (certify("int8", agreement=0.9925),)})
    )
    manifest = make_manifest(variants=(make_manifest().variants[0], int8))
    assert "int8 on CPUExecutionProvider gives 0.750 % of 600 test images another label" in "\n".join(
        list_limits(manifest, make_verdict())
    )


def test_a_class_without_images_was_never_tested():
    verdict = judge(
        labels_N=np.arange(100) % 2,
        challenger_N=np.arange(100) % 2,
        champion_N=None,
        classes=CLASSES,
        split="test",
        champion_version=None,
        rules=GateRules(),
    )
    card = write_card(make_manifest(), verdict)
    assert "emu: never tested" in read_sections(card)["Known limits"]
    assert read_rows(read_sections(card)["Classes"])[2] == ["emu", "0", *["-"] * 6]


def test_names_do_not_break_the_card():
    names = ("ca|t", "**dog**", "<script>emu`")
    manifest = make_manifest(classes=names, dataset="a|b\n# c")
    verdict = make_verdict(classes=names)
    card = write_card(manifest, verdict)
    assert "<script>" not in card
    assert "\n# c" not in card
    assert [row[0] for row in read_rows(read_sections(card)["Classes"])] == [
        r"ca\|t",
        r"\*\*dog\*\*",
        r"&lt;script>emu\`",
    ]
    read_rows(summarise(manifest, verdict))
    assert "<script>" not in summarise(manifest, verdict)


def test_the_short_card_has_what_matters():
    verdict = make_verdict()
    short = summarise(make_manifest(), verdict, "smoke")
    assert verdict.summary in short
    for fact in ("`smoke`", "3 classes", "0.8500 (", "1.4321", "0.0432 -> 0.0123", "80.00 %", RUN, DATA, GIT, "1" * 64):
        assert fact in short, fact
    assert read_rows(short) == [
        ["fp32, CPU", "1.00000", "4.21", "78,976", "yes"],
        ["int8, CPU", "0.87650", "2.10", "157,952", "no: agreement 0.8765, allowed is 0.99"],
    ]


def test_the_short_card_fits_whatever_the_names_and_refusals_are():
    names = tuple(f"a long name of a class, number {index}" for index in range(150))
    worse = GateRules(max_class_drop=0.0, max_latency_ms=1)
    labels_N = np.repeat(np.arange(150), 40)
    verdict = judge(
        labels_N=labels_N,
        challenger_N=(labels_N + 1) % 150,
        champion_N=labels_N,
        classes=names,
        split="test",
        champion_version="4",
        rules=worse,
    )
    assert len(verdict.refusals) == 3
    assert "and 147 more classes did" in verdict.refusals[1]
    long = "long " * 500
    refused = (
        make_manifest()
        .variants[1]
        .model_copy(
            update={
                "certificates": tuple(
                    certify("int8", provider, agreement=0.5, refusal=long) for provider in (CPU, CUDA)
                ),
            }
        )
    )
    manifest = make_manifest(
        classes=names,
        calibration=make_calibration(150),
        variants=(make_manifest().variants[0], refused, refused.model_copy(update={"precision": "fp16"})),
    )
    short = summarise(manifest, verdict)
    assert len(short) <= LONGEST_SUMMARY
    for fact in (RUN, DATA, GIT, "not promoted", "ECE"):
        assert fact in short
    assert all(refusal in write_card(manifest, verdict) for refusal in verdict.refusals)
    longer = make_manifest(recipe=long, dataset=long, versions={f"package {index}": long for index in range(50)})
    assert len(summarise(longer, verdict)) <= LONGEST_SUMMARY
    assert GIT in summarise(longer, verdict)


def test_the_same_facts_give_the_same_card():
    assert write_card(make_manifest(), make_verdict(), "7") == write_card(make_manifest(), make_verdict(), "7")
