import pytest
from mlflow import MlflowClient

from flows import retraining
from flows.retraining import REASON_TAG, add_feedback, join_reasons, note_reason
from model_code.data.add import add_dataset
from model_code.data.cache import open_dataset
from model_code.settings import Settings
from tests.unit.serving.tiny_bundle import paint


@pytest.fixture
def settings(tmp_path, monkeypatch):
    made = Settings(home=tmp_path / "home", tracking_uri="sqlite://", has_mlflow_server=False)

    def pack(name, sources, image_size):
        return add_dataset(
            name,
            sources,
            cache_dir=made.cache_dir,
            data_dir=made.data_dir,
            image_size=image_size,
            progress=False,
        )

    monkeypatch.setattr(retraining.data_flow, "fn", pack)
    return made


def paint_folder(folder, names, count=3, offset=0):
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / name / f"{offset + number}.png").write_bytes(paint(name, size=(9 + number, 9)))
    return folder


def add(settings, folder, name="food-tiny"):
    add_dataset(name, [folder], cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)


def count_train(settings, name="food-tiny"):
    return len(open_dataset(name, settings.cache_dir).splits["train"].labels_N)


def test_feedback_is_packed_with_the_pictures_that_were_there(settings, tmp_path):
    add(settings, paint_folder(tmp_path / "original", ["red", "green"]))
    paint_folder(settings.feedback_dir / "food", ["green"], count=2, offset=100)
    reason = add_feedback(settings, "food", "food-tiny")
    assert reason.startswith("with 2 pictures of feedback among the training pictures, data ")
    assert count_train(settings) == 8
    assert open_dataset("food-tiny", settings.cache_dir).image_size == 16
    assert add_feedback(settings, "food", "food-tiny") == reason
    paint_folder(settings.feedback_dir / "food", ["red"], count=1, offset=200)
    assert add_feedback(settings, "food", "food-tiny").startswith("with 3 pictures")
    assert count_train(settings) == 9


def test_without_feedback_nothing_is_said_or_packed(settings, tmp_path):
    add(settings, paint_folder(tmp_path / "original", ["red", "green"]))
    assert add_feedback(settings, "food", "food-tiny") == ""
    assert count_train(settings) == 6


def test_where_it_cannot_be_added_the_reason_says_how(settings, tmp_path):
    paint_folder(settings.feedback_dir / "food", ["green"])
    original = paint_folder(tmp_path / "original", ["red", "green"])
    add(settings, original)
    remedy = f"`darkroom data add food-tiny --from ORIGINAL --from {settings.feedback_dir / 'food'}`"
    original.rename(tmp_path / "elsewhere")
    reason = add_feedback(settings, "food", "food-tiny")
    assert f"{original} is not here any more" in reason
    assert reason.endswith(remedy)
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, progress=False)
    assert "it is not known which files it was packed from" in add_feedback(settings, "food", "shapes")
    (tmp_path / "elsewhere").rename(original)
    paint_folder(settings.feedback_dir / "food", ["blue"], count=0)
    assert "class 'blue' has no pictures" in add_feedback(settings, "food", "food-tiny")
    assert count_train(settings) == 6


def test_a_reason_fits_the_ledger():
    assert join_reasons("drift", "", "feedback") == "drift; feedback"
    assert len(join_reasons("x" * 900, "y" * 900)) == 1000


def test_a_run_keeps_its_first_reason(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = client.create_run(client.create_experiment("darkroom")).info.run_id
    assert note_reason(client, run_id, "drift")
    assert note_reason(client, run_id, "drift")
    assert not note_reason(client, run_id, "feedback")
    tags = client.get_run(run_id).data.tags
    assert tags[REASON_TAG] == "drift"
    assert tags["mlflow.note.content"] == "Trained again: drift"
