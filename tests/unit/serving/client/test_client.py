import csv
import dataclasses
import io
import json
import logging
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving.client.client import (
    PREDICTION_COLUMNS,
    PredictResult,
    describe_model,
    flatten_records,
    list_records,
    name_answers,
    predict,
    write_submission,
)
from serving.client.sources import SourceProblem
from serving.errors import ClientError
from serving.limits import MAX_IMAGE_BYTES
from serving.listing import lay_out, print_listing
from serving.models.predictions import LabelProbability, ModelIdentity, Prediction
from serving.printable import PrintableFormatter
from tests.unit.serving.tiny_bundle import paint

MODEL = {"name": "cifar10", "version": "3", "sha256": "ab", "precision": "fp32"}
RED = paint("red")


class Web:
    """A server on loopback that answers what a test queued, and keeps what it was asked."""

    def __init__(self):
        self.answers = []
        self.requests = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def do_GET(self):
                self.answer(b"")

            def answer(self, body):
                web.requests.append((self.path, dict(self.headers), body))
                status, headers, payload = web.answers.pop(0)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def add(self, status=200, payload=b"", **headers):
        self.answers.append((status, {name.replace("_", "-"): value for name, value in headers.items()}, payload))

    def add_labels(self, *labels):
        predictions = [
            {
                "filename": None,
                "label": one,
                "probability": 0.75,
                "is_confident": one != "unsure",
                "top": [{"label": one, "probability": 0.75}],
            }
            for one in labels
        ]
        body = {"model": MODEL, "provider": "CPUExecutionProvider", "predictions": predictions}
        self.add(payload=json.dumps(body).encode())

    def add_error(self, status, message, **headers):
        self.add(status, json.dumps({"error": {"code": "x", "message": message}}).encode(), **headers)


@pytest.fixture
def service():
    web = Web()
    yield web
    web.close()


@pytest.fixture
def website():
    web = Web()
    yield web
    web.close()


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "deeper/c.webp"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(RED + name.encode())
    return tmp_path / "album"


def test_one_file_goes_as_the_raw_body(service, tmp_path):
    file = tmp_path / "cat.png"
    file.write_bytes(RED)
    service.add_labels("red")
    result = predict([str(file)], service.url, "cifar10", 2)
    ((path, headers, body),) = service.requests
    assert path == "/v1/predict?model=cifar10&top_k=2"
    assert headers["Content-Type"] == "application/octet-stream"
    assert body == RED
    assert [(one.filename, one.label) for one in result.predictions] == [(str(file), "red")]
    assert result.model.version == "3"
    assert result.problems == ()


def test_a_folder_stands_for_its_images_in_order(service, folder):
    service.add_labels("one", "two", "three")
    result = predict([str(folder)], service.url)
    assert [one.filename for one in result.predictions] == [
        str(folder / name) for name in ("a.JPG", "b.png", "deeper/c.webp")
    ]
    ((_, _, body),) = service.requests
    assert body.count(b'name="image"') == 3
    assert b"notes.txt" not in body


def test_many_images_go_in_groups_of_64(service, tmp_path):
    for number in range(70):
        (tmp_path / f"{number:02}.png").write_bytes(RED)
    service.add_labels(*map(str, range(64)))
    service.add_labels(*map(str, range(64, 70)))
    result = predict([str(tmp_path)], service.url)
    assert [one.label for one in result.predictions] == [str(number) for number in range(70)]
    assert len(service.requests) == 2


def test_one_bad_image_does_not_spoil_the_others(service, folder):
    service.add_error(400, "image 2 of 3 is not an image")
    service.add_labels("one")
    service.add_error(400, "12 bytes that do not decode")
    service.add_labels("three")
    result = predict([str(folder)], service.url)
    assert [one.label for one in result.predictions] == ["one", "three"]
    assert [(one.source, one.message) for one in result.problems] == [
        (str(folder / "b.png"), "12 bytes that do not decode")
    ]


def test_every_unreadable_source_is_one_problem(service, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty.png").touch()
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    sources = [str(tmp_path / name) for name in ("nothing", "missing.png", "empty.png", "large.png")]
    result = predict([*sources, "ftp://example.org/a.png", "http://[bad"], service.url)
    assert [one.source for one in result.problems] == [*sources, "ftp://example.org/a.png", "http://[bad"]
    messages = [one.message for one in result.problems]
    expected = ["no image", "No such file", "empty", "10,000,000 bytes", "only http", "cannot be fetched"]
    for message, words in zip(messages, expected, strict=True):
        assert words in message
        assert "\n" not in message
    assert result.predictions == ()
    assert service.requests == []


def test_an_address_is_fetched_here_and_redirects_are_followed(service, website):
    website.add(302, Location="/real.png")
    website.add(payload=RED)
    service.add_labels("red")
    result = predict([f"{website.url}/a.png"], service.url)
    assert service.requests[0][2] == RED
    assert result.predictions[0].filename == f"{website.url}/a.png"
    assert [path for path, _, _ in website.requests] == ["/a.png", "/real.png"]


def test_an_address_that_fails_is_a_problem(service, website):
    website.add(404)
    for _ in range(6):
        website.add(302, Location="/again")
    website.add(302, Location="file:///etc/passwd")
    website.add(payload=bytes(MAX_IMAGE_BYTES + 1))
    result = predict([f"{website.url}/{name}" for name in range(4)], service.url)
    messages = [one.message for one in result.problems]
    expected = ["answered 404", "redirects", "cannot be fetched", "more than 10,000,000 bytes"]
    for message, words in zip(messages, expected, strict=True):
        assert words in message
    assert service.requests == []


def test_overload_is_waited_out(service, tmp_path):
    file = tmp_path / "cat.png"
    file.write_bytes(RED)
    service.add_error(503, "busy", Retry_After="3")
    service.add_error(429, "busy")
    service.add_labels("red")
    waits = []
    assert predict([str(file)], service.url, sleep=waits.append).predictions[0].label == "red"
    assert waits == [3.0, 1.0]


def test_lasting_overload_is_reported(service, tmp_path):
    file = tmp_path / "cat.png"
    file.write_bytes(RED)
    for _ in range(4):
        service.add_error(503, "64 requests are waiting", Retry_After="3600")
    waits = []
    with pytest.raises(ClientError, match="64 requests are waiting"):
        predict([str(file)], service.url, sleep=waits.append)
    assert waits == [10.0, 10.0, 10.0]


def test_a_refusal_of_the_question_ends_it(service, folder):
    service.add_error(404, "no model 'dogs' is loaded; loaded: cifar10")
    with pytest.raises(ClientError, match="loaded: cifar10"):
        predict([str(folder)], service.url, "dogs")


@pytest.mark.parametrize(("status", "payload"), [(200, b"<html>"), (404, b"Not Found"), (200, b"{}")])
def test_another_service_is_recognised(service, tmp_path, status, payload):
    file = tmp_path / "cat.png"
    file.write_bytes(RED)
    service.add(status, payload)
    with pytest.raises(ClientError, match="not Darkroom"):
        predict([str(file)], service.url)


def test_no_server_says_how_to_start_one(tmp_path, service):
    file = tmp_path / "cat.png"
    file.write_bytes(RED)
    service.server.server_close()
    with pytest.raises(ClientError, match="darkroom serve"):
        predict([str(file)], service.url)


@pytest.mark.parametrize("server", ["localhost:3000", "", "ftp://localhost"])
def test_a_server_that_is_no_address_is_refused(server):
    with pytest.raises(ClientError, match="is not an address"):
        predict(["a.png"], server)


def test_the_table_names_model_and_images(service, folder):
    service.add_labels("one", "unsure", "three")
    result = predict([str(folder)], service.url)
    assert describe_model(result) == "cifar10 version 3, fp32, CPUExecutionProvider"
    lines = lay_out(PREDICTION_COLUMNS, name_answers(list_records(result)), 400)
    assert [one in line for one, line in zip(("one", "don't know (unsure?)", "three"), lines[2:], strict=True)] == [
        True
    ] * 3
    assert all("75.0%" in line for line in lines[2:])
    assert any("deeper/c.webp" in line for line in lines)


def test_records_are_flat_and_csv_holds_all(service, folder):
    service.add_labels("one", "unsure", "comma, quoted")
    done = []
    result = predict([str(folder)], service.url, on_progress=done.append)
    assert done == [3]
    assert list_records(result)[1] == {
        "source": result.predictions[1].filename,
        "label": "unsure",
        "probability": 0.75,
        "is_confident": False,
        "model": "cifar10",
        "version": "3",
        "sha256": result.models[1].sha256,
        "precision": result.models[1].precision,
        "top": {"unsure": 0.75},
    }


IDENTITY = ModelIdentity(**MODEL)


def test_csv_has_every_class_and_every_failure(capsys):
    top = (LabelProbability(label="cat", probability=0.5), LabelProbability(label="dog", probability=0.25))
    prediction = Prediction(filename="a.png", label="cat", probability=0.5, is_confident=False, top=top)
    problem = SourceProblem("b.png", "cannot be read")
    result = PredictResult(IDENTITY, "CPUExecutionProvider", (prediction,), (IDENTITY,), (problem,))
    print_listing((), flatten_records(list_records(result)), "csv")
    answered, failed = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (answered["label"], answered["label_2"], answered["probability_2"]) == ("cat", "dog", "0.25")
    assert (answered["is_confident"], answered["error"]) == ("false", "")
    assert (failed["source"], failed["error"], failed["label"]) == ("b.png", "cannot be read", "")


HOSTILE = [
    ('=HYPERLINK("http://x","y").png', '\'=HYPERLINK("http://x","y").png'),
    ("+1.png", "'+1.png"),
    ("-2+3.png", "'-2+3.png"),
    ("@SUM(A1).png", "'@SUM(A1).png"),
    (" =1+1.png", "' =1+1.png"),
    ("\uff1d1+1.png", "'\uff1d1+1.png"),
    ("\uff0b1.png", "'\uff0b1.png"),
    ("\uff0d1.png", "'\uff0d1.png"),
    ("\uff20SUM(A1).png", "'\uff20SUM(A1).png"),
    ("a;=1+1", "a;=1+1"),
    ("\t=1.png", "'\\t=1.png"),
    ("\r=1.png", "'\\r=1.png"),
    ("\x1b]0;title\x07.png", "\\x1b]0;title\\x07.png"),
    ("\x9b31m.png", "\\x9b31m.png"),
    ("two\nlines.png", "two\\nlines.png"),
    ("gnp.\u202egpj", "gnp.\\u202egpj"),
    ("\udcff.png", "\\udcff.png"),
    ("a=1 - Zürich 🐈.png", "a=1 - Zürich 🐈.png"),
]


@pytest.mark.parametrize(("name", "cell"), HOSTILE)
def test_names_move_no_cursor_and_are_no_formula(name, cell, capsys):
    prediction = Prediction(filename=name, label="cat", probability=1.0, is_confident=True, top=())
    records = list_records(PredictResult(IDENTITY, "CPUExecutionProvider", (prediction,), (IDENTITY,), ()))
    print_listing((), flatten_records(records), "csv")
    printed = capsys.readouterr().out
    (row,) = csv.DictReader(io.StringIO(printed))
    assert row["source"] == cell
    # Where the separator is a semicolon, too, each line is one that starts with this cell.
    assert next(csv.reader(printed.splitlines()[1:], delimiter=";"))[0].startswith(cell.split('"')[0])
    assert row["probability"] == "1.0"
    drawn = "\n".join(lay_out(PREDICTION_COLUMNS, name_answers(records), 200))
    assert all(one.isprintable() or one == "\n" for one in drawn)
    assert cell.lstrip("'") in drawn
    assert json.dumps(records[0]).isprintable(), "escaped, and exact for programs"


def test_log_lines_stay_lines(tmp_path):
    record = logging.LogRecord(
        "serving", logging.WARNING, "x", 1, "%s: not loaded", ("a\n2026 INFO fake\x1b[2J",), None
    )
    line = PrintableFormatter("%(levelname)s %(message)s").format(record)
    assert line == "WARNING a\\n2026 INFO fake\\x1b[2J: not loaded"


def pack(file, **images):
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in images.items():
            archive.writestr(name.replace("__", "/"), data)
    return str(file)


def test_a_zip_archive_stands_for_its_images(service, tmp_path):
    images = {"test__2.png": RED + b"2", "test__10.JPG": RED + b"10", "read.me": b"x", "__MACOSX__._2.png": b"x"}
    archive = pack(tmp_path / "test.zip", **images)
    service.add_labels("cat", "dog")
    result = predict([archive], service.url)
    assert [one.filename for one in result.predictions] == [f"{archive}/test/10.JPG", f"{archive}/test/2.png"]
    assert RED + b"10" in service.requests[0][2]
    assert not result.problems


def test_archives_that_cannot_be_read(service, tmp_path):
    empty = pack(tmp_path / "empty.zip", notes="x")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK no archive")
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(
        (tmp_path / "whole.zip").read_bytes() if pack(tmp_path / "whole.zip", **{"1.png": RED}) else b""
    )
    damaged.write_bytes(damaged.read_bytes().replace(RED, RED[::-1]))
    result = predict([empty, str(broken), str(damaged), str(tmp_path / "none.zip")], service.url)
    messages = {problem.source: problem.message for problem in result.problems}
    assert messages[empty].startswith("no image in the archive; looked for ")
    assert messages[str(broken)] == "cannot be read: File is not a zip file"
    assert messages[f"{damaged}/1.png"].startswith("cannot be read: Bad CRC-32")
    assert messages[str(tmp_path / "none.zip")] == "cannot be read: No such file or directory"


def make_result(*names, problems=()):
    predictions = tuple(
        Prediction(filename=name, label=f"class {name[0]}", probability=0.5, is_confident=False, top=())
        for name in names
    )
    return PredictResult(None, None, predictions, (), problems)


def test_a_submission_is_ordered_by_number_and_holds_every_label():
    stream = io.StringIO()
    write_submission(make_result("b/10.png", "a/9.png", "c/007.png"), stream)
    assert stream.getvalue() == "id,label\n7,class c\n9,class a\n10,class b\n"


def test_a_submission_has_no_formula_and_no_escape_sequence():
    result, stream = make_result("1.png"), io.StringIO()
    (prediction,) = result.predictions
    label = prediction.model_copy(update={"label": "=1+\x1b[2J"})
    write_submission(dataclasses.replace(result, predictions=(label,)), stream)
    assert stream.getvalue() == "id,label\n1,'=1+\\x1b[2J\n"


@pytest.mark.parametrize(
    ("names", "problems", "message"),
    [
        (("1.png", "cat.png"), (), r"^cat\.png: a submission needs images named by number, such as 17\.png"),
        (("1.png", "²\u0661.png"), (), "needs images named by number"),
        (("a/1.png", "b/01.jpg"), (), r"^b/01\.jpg: two images have the number 01"),
        (("1.png",), (SourceProblem("2.png", "empty"),), "^1 image has no label: a submission needs all of them"),
    ],
)
def test_an_incomplete_submission_is_not_written(names, problems, message):
    stream = io.StringIO()
    with pytest.raises(ClientError, match=message):
        write_submission(make_result(*names, problems=problems), stream)
    assert stream.getvalue() == ""
