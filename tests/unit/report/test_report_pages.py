import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from model_code.disk import write_atomically
from model_code.errors import DataError, DiskFullError, TrackingError
from model_code.release.versions import write_verdict
from model_code.report.collection import collect_runs
from model_code.report.contents import Origin, build_document, describe_origin
from model_code.report.files import EXPERIMENT, log_report, write_report
from model_code.report.markdown import render_markdown
from model_code.report.page import render_page
from model_code.report.published import ARTICLES
from model_code.report.summary import measure_spread
from serving.bundle.store import CHAMPION
from tests.unit.release.conftest import make_verdict
from tests.unit.report.synthetic_runs import enter_every_kind, make_collection, make_run
from tests.unit.tracking.small_store import make_settings, open_small_store

pytestmark = pytest.mark.slow

ORIGIN = Origin("2026-01-02 03:04 UTC", "abc123", "a machine")
EVIL = "<script>alert(1)</script>|`x`"
LARGEST_PAGE_BYTES = 3_000_000


class Page(HTMLParser):
    """Collects what a page links to and shows."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.tags, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page_text(filled):
    return render_page(filled[2])


@pytest.fixture(scope="module")
def markdown_text(filled):
    return render_markdown(filled[2])


@pytest.fixture(scope="module")
def filled(opened, store):
    """(settings, client, document) of a store with runs of every kind and a champion."""
    settings, client = opened
    enter_every_kind(store)
    evil = store.enter_supervised("resnet18_cifar10_exp8", 0.8, epochs=2, budget=f"custom: {EVIL}")
    client.create_registered_model("cifar10")
    version = client.create_model_version("cifar10", "nowhere", run_id=evil)
    write_verdict(client, "cifar10", version.version, make_verdict(), f"the best {EVIL}")
    client.set_registered_model_alias("cifar10", CHAMPION, version.version)
    return settings, client, build_document(collect_runs(client), client, settings, ORIGIN)


def test_the_page_is_whole(page_text):
    page = Page(page_text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert [link for link in page.links if not link.startswith("#")] == []


def test_the_page_needs_nothing_else(filled, page_text):
    page = Page(page_text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?://|@import|url\(", page_text)
    assert len(page_text) < LARGEST_PAGE_BYTES
    assert len(page.images) == len(filled[2].images) > 40
    for image in page.images:
        assert len(image["alt"]) > 20
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(content)).size[0] >= int(image["width"])


def test_sections_are_in_order(filled):
    assert [section.anchor for section in filled[2].sections] == [
        "summary",
        "best",
        "published",
        "departures",
        "questions",
        "curves",
        "classes",
        "simsiam",
        "untrained",
        "legend",
        "runs",
    ]


def test_every_run_that_is_named_is_in_the_appendix(markdown_text):
    body, appendix = markdown_text.split("## Appendix")
    short = set(re.findall(r"`([0-9a-f]{8})`", body))
    full = set(re.findall(r"`([0-9a-f]{32})`", appendix))
    assert short <= {run_id[:8] for run_id in full}
    assert len(full) > 70


def test_text_of_runs_is_shown_as_it_is(page_text, markdown_text):
    assert "<script" not in page_text + markdown_text
    assert "&lt;script&gt;" in page_text
    assert "&lt;script>alert(1)&lt;/script>\\|\\`x\\`" in markdown_text


def test_markdown_tables_have_as_many_cells_as_columns(markdown_text):
    for block in re.findall(r"(?:^\|.*\n)+", markdown_text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_every_published_figure_is_there_without_any_run(filled):
    settings, client, _ = filled
    document = build_document(make_collection(), client, settings, ORIGIN)
    text = render_markdown(document)
    count = sum(len(article.figures) for article in ARTICLES)
    published = text.split("## Departures from the articles")[0].split("## Published beside ours")[1]
    rows = re.findall(r"^\| (?!what|---)", published, re.MULTILINE)
    assert len(rows) == count == 9 + 16 + 2 + 12
    assert published.count("<details>") == len(ARTICLES)
    assert "Learning curves\n\nNo curve of a supervised run yet: not run.\n\n<details><summary>swin_cifar10_" in text
    assert Page(render_page(document)).open == []


def test_verdicts_and_figures_say_what_they_rest_on(markdown_text):
    text = markdown_text
    assert re.search(
        r"\| as published: own default over .*\| higher by \d\.\d points \[.*\], 3 seeds \| 0, 1, 2 \|", text
    )
    assert "| not run: no run of resnet50_cifar10_random |" in text
    assert "no difference that 3 seeds can show: +0.0 points [0.0, 0.0], the same in each" in text
    for line in re.findall(r"^!\[.*", text, re.MULTILINE):
        assert re.fullmatch(r"!\[.+\]\(figures/[\w-]+\.png\)", line)
    # The tables below name the runs of the first screen's chart.
    charts = re.findall(r"^\*\*(?!Caution|Published accuracy and ours)", text, re.MULTILINE)
    assert len(re.findall(r"Runs: `[0-9a-f]{8}`", text)) == len(charts)


def test_every_finished_run_is_in_the_appendix(filled):
    _settings, client, document = filled
    tables = [getattr(block, "block", block) for block in document.sections[-1].blocks]
    listed = [row[0].text for table in tables for row in table.rows]
    assert len(listed) == len(set(listed))
    assert {run.run_id for run in collect_runs(client).runs} <= set(listed)


def test_the_first_screen_has_champions_a_chart_and_answers(filled):
    first = filled[2].sections[0]
    champions, chart, answers, *_ = first.blocks
    assert [cell.text for cell in champions.rows[0][:3]] == ["cifar10", "66.67 %", "version 1"]
    assert champions.rows[0][0].detail == "custom run"
    assert champions.rows[0][1].detail == "95 % interval 9.43 % to 99.16 %, 3 test images; macro-F1 55.56 %"
    assert [image.name for image in chart.images] == ["published-1", "published-2"]
    assert answers.columns == ("question", "comparison", "verdict", "points [95 % interval]", "seeds")


@pytest.mark.parametrize(
    ("values", "images", "interval"),
    [
        ((0.5,), 100, (0.3983, 0.6017)),
        ((0.5,), None, None),
        ((0.5, 0.6), 100, None),
        ((0.5, 0.5, 0.5), None, (0.5, 0.5)),
        ((0.4, 0.5, 0.6), None, (0.2516, 0.7484)),
    ],
)
def test_the_interval_of_ours_is_over_seeds_or_over_images(values, images, interval):
    spread = measure_spread(values, images)
    assert spread == (None if interval is None else pytest.approx(interval, abs=1e-4))


def read_appendix(document):
    [table, *_] = document.sections[-1].blocks
    return {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_the_appendix_says_what_fine_tuned_runs_started_from(filled):
    settings, client, document = filled
    rows = read_appendix(document).values()
    tuned = [row for row in rows if row["recipe"].text == "simsiam_cifar10_finetuned"]
    [start] = {run_id for row in tuned for run_id in row["started from"].run_ids}
    assert len(tuned) == 3
    assert (client.get_run(start).data.tags["recipe"], client.get_run(start).data.tags["seed"]) == (
        "simsiam_cifar10",
        "2",
    )
    assert {row["started from"].text for row in rows if row not in tuned} == {"-"}

    # Runs that no table shows: one that others started from, one that it started from, one that is not in the store.
    replaced, gone = start, "9" * 32
    runs = [
        make_run("resnet18_cifar10_exp", 0, pretrained_run_id=replaced),
        make_run("resnet18_cifar10_exp", 1, pretrained_run_id=gone),
        make_run("resnet18_cifar10_exp", 2, pretrained_sha256="e" * 64),
        make_run("resnet18_cifar10_exp", 3, pretrained_run_id="1" * 32),
    ]
    hidden = make_run("hidden", pretrained_run_id="2" * 32, run_id="1" * 32)
    document = build_document(make_collection(runs, [hidden]), client, settings, ORIGIN)
    rows = read_appendix(document)
    assert [rows[run.run_id]["started from"].run_ids for run in runs] == [(replaced,), (gone,), (), ("1" * 32,)]
    assert rows[runs[2].run_id]["started from"].text == "weights " + "e" * 16
    assert rows["1" * 32]["started from"].run_ids == ("2" * 32,)
    assert rows[replaced]["run"].detail == "not among the runs compared"
    assert rows[gone]["run"].detail == rows["2" * 32]["run"].detail == "no longer in MLflow"
    page = Page(render_page(document))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


@pytest.mark.parametrize(
    ("metrics", "text", "detail"),
    [
        ({"test/accuracy": 0.9184, "validation/best_accuracy": 0.9}, "91.84 %", "test"),
        ({"validation/best_accuracy": 0.127}, "12.70 %", "validation"),
        ({"test/linear_accuracy": 0.8, "test/knn_accuracy": 0.7}, "80.00 %", "test, linear layer"),
        ({"validation/accuracy": 0.001}, "0.100 %", "validation"),
    ],
)
def test_the_appendix_has_the_main_accuracy_of_each_run(filled, metrics, text, detail):
    settings, client, _ = filled
    runs = [make_run("resnet18_cifar10_exp", metrics=metrics), make_run("resnet18_cifar10_exp", 1)]
    document = build_document(make_collection(runs), client, settings, ORIGIN)
    measured, other = (read_appendix(document)[run.run_id]["accuracy"] for run in runs)
    assert (measured.text, measured.detail, other.text) == (text, detail, "-")


def test_names_and_ids_break_where_a_column_is_narrow(page_text, filled):
    [start] = {row["run"].text for row in list(read_appendix(filled[2]).values())[:1]}
    assert f"<code>{start[:16]}<wbr>{start[16:]}</code>" in page_text
    assert "<code>resnet18_<wbr>cifar10_<wbr>exp</code>" in page_text


def test_a_question_stands_once_beside_its_comparisons(page_text, markdown_text):
    question = "Does the own ResNet-18 beat torchvision&#39;s because of its initialisation?"
    assert re.search(rf'<th scope=row rowspan="5"><span class="long">{re.escape(question)}</span></th>', page_text)
    assert "\n|  | own over torchvision's, both default | " in markdown_text


def test_runs_of_a_server_link_to_their_pages(filled, tmp_path):
    _, client, _ = filled
    settings = make_settings(tmp_path, "https://me:secret@mlflow.example:5000/")
    run = make_run("resnet18_cifar10_exp", metrics={"validation/best_accuracy": 0.8})
    document = build_document(make_collection([run]), client, settings, ORIGIN)
    page = Page(render_page(document))
    outside = [link for link in page.links if not link.startswith("#")]
    assert outside == [f"https://mlflow.example:5000/#/experiments/1/runs/{run.run_id}"]
    assert f">{run.run_id[:16]}<wbr>{run.run_id[16:]}</a>" in render_page(document)
    assert "secret" not in render_page(document) + render_markdown(document)


def test_files_on_the_disk_and_in_mlflow(filled, tmp_path):
    settings, client, document = filled
    (tmp_path / "mine.txt").write_text("mine")
    files = write_report(document, tmp_path)
    for name in re.findall(r"\]\((figures/[^)]+)\)", files.markdown.read_text()):
        assert (tmp_path / name).is_file()
    first = files.page.read_bytes()
    assert write_report(document, tmp_path).page.read_bytes() == first
    run = client.get_run(log_report(client, settings, files))
    assert (run.info.run_name, run.info.status) == ("report", "FINISHED")
    assert run.info.experiment_id == client.get_experiment_by_name(EXPERIMENT).experiment_id
    place = Path(run.info.artifact_uri.removeprefix("file://"))
    assert place.is_relative_to(settings.artifacts_dir)
    assert (place / "report.html").read_bytes() == first
    assert {file.name for file in place.iterdir()} == {"report.html", "report.md", "figures"}
    assert len(list((place / "figures").iterdir())) == len(files.figures) == len(document.images)


def test_an_experiment_that_was_deleted(filled, tmp_path):
    settings, client, document = filled
    files = write_report(document, tmp_path)
    log_report(client, settings, files)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(TrackingError, match=r"^the report is in .*, but MLflow at .* does not keep it") as caught:
        log_report(client, settings, files)
    assert "\n" not in str(caught.value)
    client.restore_experiment(experiment)


def test_a_folder_that_is_a_file(filled, tmp_path):
    write_atomically(tmp_path / "taken", b"")
    with pytest.raises(DataError, match=r"^the report cannot be written to .*taken \(.*\); name another --out$"):
        write_report(filled[2], tmp_path / "taken")


def test_a_folder_that_cannot_be_written_to(filled):
    # Not even root makes a folder there.
    with pytest.raises(DataError, match=r"the report cannot be written to .* name another --out$"):
        write_report(filled[2], Path("/proc/closed/report"))


def test_a_store_without_runs(tmp_path):
    with open_small_store(tmp_path) as (settings, client):
        files = write_report(
            build_document(collect_runs(client), client, settings, describe_origin()), tmp_path / "out"
        )
        log_report(client, settings, files)
    assert sorted(file.name for file in files.folder.iterdir()) == ["figures", "report.html", "report.md"]
    assert {file.name.partition("-")[0] for file in files.figures} == {"published", "swin_cifar10_published"}
    assert "0 shown of 0 finished ones" in files.markdown.read_text()


@pytest.mark.parametrize(("budgets", "words"), [(1, "1 more finished run that"), (2, "2 more finished runs that")])
def test_what_is_shown_and_what_is_not_are_counted(filled, budgets, words):
    settings, client, _ = filled
    hidden = [[make_run("hidden", budget=f"custom: limit_train={number}")] for number in range(budgets)]
    shown = [make_run("resnet18_cifar10_exp", pretrained_run_id="9" * 32)]
    document = build_document(make_collection(shown, *hidden), client, settings, ORIGIN)
    # Neither the champion's run nor the one that another started from is among the finished ones.
    assert dict(document.facts)["runs"].startswith(f"1 shown of {1 + budgets} finished ones")
    assert document.sections[-1].blocks[1].title == f"{words} no table above shows"


def test_a_full_disk(filled, small_disk):
    (small_disk / "filler").write_bytes(b"x" * 900_000)
    with pytest.raises(DiskFullError, match="is full: saving"):
        write_report(filled[2], small_disk / "report")
    assert not (small_disk / "report" / "report.html").exists()
