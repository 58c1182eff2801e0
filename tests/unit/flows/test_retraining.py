import pytest
from mlflow import MlflowClient
from PIL import Image

from flows.operations import retraining
from flows.operations.retraining import REASON_TAG, add_feedback, add_feedback_once, join_reasons, note_reason
from model_code.data.add import add_dataset
from model_code.data.cache import open_dataset
from model_code.settings import Settings
from tests.unit.serving.tiny_bundle import encode


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", tracking_uri="sqlite://", has_mlflow_server=False)


def paint_folder(folder, names, count=3, offset=0):
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.new("RGB", (9, 9), (offset + number, len(name), 0))
            (folder / name / f"{offset + number}.png").write_bytes(encode(image))
    return folder


def add(settings, folder, name="food-tiny"):
    add_dataset(name, [folder], cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)


def test_feedback_is_packed_beside_the_set_that_was_there(settings, tmp_path):
    add(settings, paint_folder(tmp_path / "original", ["red", "green"]))
    # Its files are not needed any more.
    (tmp_path / "original").rename(tmp_path / "elsewhere")
    paint_folder(settings.feedback_dir / "food", ["green"], count=2, offset=100)
    first = add_feedback(settings, "food", "food-tiny")
    packed = open_dataset("food-tiny-with-feedback", settings.cache_dir)
    assert first == (
        packed.name,
        f"with 2 images of feedback among the training images, data {packed.checksum[:12]}",
    )
    assert len(packed.splits["train"].labels_N) == 8
    assert len(open_dataset("food-tiny", settings.cache_dir).splits["train"].labels_N) == 6
    # The next model was trained with feedback: it starts from the same set, and none counts twice.
    assert add_feedback(settings, "food", packed.name) == first
    paint_folder(settings.feedback_dir / "food", ["red"], count=1, offset=200)
    dataset, reason = add_feedback(settings, "food", packed.name)
    assert (dataset, reason[:13]) == (packed.name, "with 3 images")


def test_without_feedback_the_set_itself_is_trained_on(settings, tmp_path):
    add(settings, paint_folder(tmp_path / "original", ["red", "green"]))
    assert add_feedback(settings, "food", "food-tiny") == ("food-tiny", "")
    reason = "without feedback, of which there is none any more"
    assert add_feedback(settings, "food", "food-tiny-with-feedback") == ("food-tiny", reason)
    assert not (settings.cache_dir / "food-tiny-with-feedback").exists()


def test_what_cannot_be_used_is_said(settings, tmp_path):
    add(settings, paint_folder(tmp_path / "original", ["red", "green"]))
    broken = settings.feedback_dir / "food/red/broken.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no")
    broken_image = "food/red/broken.png: 2 bytes that are no image of the accepted formats; "
    dataset, reason = add_feedback(settings, "food", "food-tiny")
    assert dataset == "food-tiny"
    assert reason.startswith("images with feedback are left out: 1 images were to be added and none can be: ")
    assert broken_image in reason
    paint_folder(settings.feedback_dir / "food", ["green"], count=1, offset=100)
    dataset, reason = add_feedback(settings, "food", "food-tiny")
    assert dataset == "food-tiny-with-feedback"
    assert reason.startswith("with 1 images of feedback among ")
    assert f", 1 left out ({broken_image}" in reason
    paint_folder(settings.feedback_dir / "food", ["blue"], count=1)
    dataset, reason = add_feedback(settings, "food", "food-tiny")
    assert dataset == "food-tiny"
    assert reason.startswith("images with feedback are left out: ")
    assert "holds blue/0.png, which is not an image in a folder of a class; " in reason
    dataset, reason = add_feedback(settings, "food", "food-tiny-with-feedback")
    assert dataset == "food-tiny-with-feedback"
    assert reason.startswith("images with feedback new since the last training are left out: ")


def test_a_reason_fits_the_ledger():
    assert join_reasons("drift", "", "feedback") == "drift; feedback"
    assert len(join_reasons("x" * 900, "y" * 900)) == 1000


def test_a_run_says_why_it_was_trained_unless_it_was_there_before(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = client.create_run(client.create_experiment("darkroom")).info.run_id
    client.set_terminated(run_id, end_time=2000)
    assert not note_reason(client, run_id, "drift", since_ms=2001)
    assert REASON_TAG not in client.get_run(run_id).data.tags
    assert note_reason(client, run_id, "drift", since_ms=1000)
    assert not note_reason(client, run_id, "feedback", since_ms=3000)
    tags = client.get_run(run_id).data.tags
    assert tags[REASON_TAG] == "drift"
    assert tags["mlflow.note.content"] == "Trained again: drift"


def test_a_retry_trains_on_the_same_images_whatever_came_meanwhile(settings, monkeypatch):
    added = []

    def add_some(*given):
        added.append(given)
        return "food-tiny-with-feedback", f"{len(added)} images"

    monkeypatch.setattr(retraining, "add_feedback", add_some)
    first = add_feedback_once(settings, "food", "food-tiny", "run-1")
    assert first == ("food-tiny-with-feedback", "1 images")
    assert add_feedback_once(settings, "food", "food-tiny", "run-1") == first
    assert add_feedback_once(settings, "food", "food-tiny", "run-2")[1] == "2 images"
    (settings.retraining_dir / "food.json").write_text("{")
    assert add_feedback_once(settings, "food", "food-tiny", "run-2")[1] == "3 images"
