import pytest

from flows.printing.releases import print_release
from flows.printing.summaries import ReleaseSummary
from serving.bundle.manifest import Selection
from serving.listing import fold_line
from tests.unit.release.conftest import make_verdict
from tests.unit.release.test_card import age, make_calibration, make_manifest, make_trial

ALL = Selection(split="test", count=600, answered=600, wrong=0, error_interval=(0, 0.006))
NOTHING = Selection(split="test", count=600, answered=0, wrong=0, error_interval=(0, 1))


@pytest.mark.parametrize(
    ("calibration", "facts"),
    [
        (
            make_calibration(),
            (
                "temperature 1.432: calibration error (ECE) on test 0.0432 -> 0.0123",
                "target error 1% among accepted predictions: 80.0% of test predictions accepted, 1.25% of them wrong "
                "(95 % CI 0.46% to 2.70%)",
            ),
        ),
        (
            make_calibration(trial=make_trial(refusal="of chance")),
            (
                "no temperature: the fitted one, 1.432, is not used, because of chance; calibration error (ECE) on "
                "test 0.0432",
            ),
        ),
        (
            make_calibration(per_class=(0.5, 0.25, 0.75), selections=(ALL,)),
            ("note: every prediction is accepted (lowest threshold 25.0%); images of other kinds may be accepted too",),
        ),
        (make_calibration(per_class=(None,) * 3, selections=(NOTHING,)), ("no threshold is supported",)),
        (make_calibration(selections=(NOTHING,)), ("0.0% of test predictions accepted\n",)),
        (age(make_calibration()), ("0.0432 -> 0.0123", "80.0% of test predictions accepted")),
    ],
)
def test_a_release_prints_what_its_calibration_is_worth(calibration, facts, capsys):
    manifest = make_manifest(calibration=calibration)
    print_release(ReleaseSummary(mode="dry_run", profile="full", manifest=manifest, champion_before=None))
    printed = capsys.readouterr().out
    for fact in facts:
        assert fact in printed


def test_each_refusal_has_a_line_of_its_own(capsys):
    reasons = ("accuracy fell by 2 points", "cat fell by 9 points")
    verdict = make_verdict().model_copy(update={"is_promoted": False, "refusals": reasons})
    manifest = make_manifest()
    print_release(
        ReleaseSummary(
            mode="enabled", profile="full", manifest=manifest, champion_before="1", version="2", verdict=verdict
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [f"  {verdict.measured}", *(f"  refused: {reason}" for reason in reasons)]


@pytest.mark.parametrize("is_quiet", [False, True])
def test_what_to_do_next_is_left_out_where_results_alone_are_wanted(is_quiet, capsys):
    summary = ReleaseSummary(
        mode="enabled", profile="full", manifest=make_manifest(), champion_before=None, version="1", is_champion=True
    )
    print_release(summary, is_quiet=is_quiet)
    assert ("next: " in capsys.readouterr().out) is not is_quiet


def test_long_lines_break_at_words_where_the_terminal_ends(capsys):
    print_release(ReleaseSummary(mode="dry_run", profile="full", manifest=make_manifest(), champion_before=None))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) > 100
    for line in lines:
        folded = fold_line(line.strip(), 80)
        assert max(map(len, folded.splitlines())) <= 78, "two blanks stand before it"
        assert folded.split() == line.split()
        assert fold_line(line, None) == line
