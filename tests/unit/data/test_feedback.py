import os
from pathlib import Path

import numpy as np
import pytest

from model_code.data.cache import list_datasets, open_dataset, read_manifest
from model_code.data.sources import feedback
from model_code.errors import DataError, UsageError


@pytest.fixture
def base(add, write_tree, class_files):
    return add("x", write_tree(class_files(splits=("train", "test", "val"))), image_size=16).dataset


def read_colours(split):
    return [tuple(map(int, image_HWC[0, 0])) for image_HWC in split.images_NHWC]


def test_training_images_are_more_and_the_rest_is_as_it_was(add, tmp_path, write_tree, encode, base):
    given = write_tree({"dog/b.png": encode((1, 2, 3)), "cat/a.png": encode((4, 5, 6), size=40)}, "feedback")
    extended = add("x-with-feedback", given).dataset
    assert (extended.name, extended.classes, extended.image_size) == ("x-with-feedback", ("cat", "dog"), 16)
    train = extended.splits["train"]
    assert read_colours(train) == [*read_colours(base.splits["train"]), (4, 5, 6), (1, 2, 3)]
    assert list(train.labels_N) == [*base.splits["train"].labels_N, 0, 1]
    assert (base.count_feedback(), extended.count_feedback()) == (0, 2)
    assert np.array_equal(extended.splits["test"].images_NHWC, base.splits["test"].images_NHWC)
    assert read_manifest("x-with-feedback", tmp_path / "cache").source_paths == (str(given),)
    # Whoever trains on the set itself goes on with the same images.
    assert open_dataset("x", tmp_path / "cache").checksum == base.checksum


def test_it_is_reused_until_feedback_or_the_set_itself_changes(add, write_tree, encode, class_files, base):
    given = write_tree({"cat/a.png": encode((4, 5, 6))}, "feedback")
    assert not add("x-with-feedback", given).reused
    assert add("x-with-feedback", given).reused
    write_tree({"dog/b.png": encode((1, 2, 3))}, "feedback")
    more = add("x-with-feedback", given)
    assert not more.reused
    assert len(more.dataset.splits["train"].labels_N) == len(base.splits["train"].labels_N) + 2
    add("x", write_tree(class_files(per_class=5), "other"), image_size=16)
    assert len(add("x-with-feedback", given).dataset.splits["train"].labels_N) == 10 + 2


def test_broken_images_and_copies_are_left_out(add, write_tree, encode, base):
    copies = {f"cat/{split}.png": encode(read_colours(base.splits[split])[4]) for split in base.splits}
    given = {"cat/broken.png": b"no", "cat/good.png": encode((4, 5, 6)), **copies}
    added = add("x-with-feedback", write_tree(given | {"cat/notes.txt": b"", "notes.txt": b""}, "feedback"))
    assert read_colours(added.dataset.splits["train"])[6:] == [(4, 5, 6)]
    assert [(one.name, one.reason.split(";")[0]) for one in added.skipped] == [
        ("feedback/cat/broken.png", "2 bytes that are no image of the accepted formats"),
        *((f"feedback/{name}", "is one of the data set's own images") for name in sorted(copies)),
        ("feedback/cat/notes.txt", "this file type is not read"),
        ("feedback/notes.txt", "this file type is not read"),
    ]


def test_an_image_that_moves_while_it_is_read_is_left_out(add, write_tree, encode, base, monkeypatch):
    given = write_tree({"cat/a.png": encode((4, 5, 6)), "dog/b.png": encode((1, 2, 3))}, "feedback")

    class Moving(feedback._FeedbackFolder):
        def read(self, name):
            (given / "cat/a.png").unlink(missing_ok=True)
            return super().read(name)

    monkeypatch.setattr(feedback, "_FeedbackFolder", Moving)
    added = add("x-with-feedback", given)
    assert read_colours(added.dataset.splits["train"])[6:] == [(1, 2, 3)]
    assert [one.name for one in added.skipped] == ["feedback/cat/a.png"]


def test_a_folder_that_is_removed_while_it_is_listed_is_passed_over(add, write_tree, encode, base, monkeypatch):
    """The last image of a label moves to another one: its folder goes too."""
    given = write_tree({"cat/a.png": encode((4, 5, 6)), "dog/b.png": encode((1, 2, 3))}, "feedback")
    scan, removed = os.scandir, []

    def scan_and_remove(folder):
        if Path(folder) == given / "cat":
            removed.append(folder)
            raise FileNotFoundError(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_and_remove)
    added = add("x-with-feedback", given)
    assert read_colours(added.dataset.splits["train"])[6:] == [(1, 2, 3)]
    assert len(removed) == 2  # the fingerprint and the list


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"bird/a.png": b""},
            r"feedback holds bird/a\.png, which is not an image in a folder of a class; give the folder that holds "
            r"those of x's classes: cat, dog$",
        ),
        ({"cat/deep/a.png": b""}, r"feedback holds cat/deep/a\.png, which is not"),
        ({"a.png": b""}, r"feedback holds a\.png, which is not"),
        (
            {"cat/a.png": b"no", "dog/b.png": b"no"},
            r"^2 images were to be added and none can be: feedback/cat/a\.png: ",
        ),
        ({"cat/a.txt": b""}, r"feedback: no images found; give a folder with a folder for each class$"),
    ],
)
def test_what_is_no_feedback_is_refused(add, tmp_path, write_tree, base, files, message):
    with pytest.raises(DataError, match=message):
        add("x-with-feedback", write_tree(files, "feedback"))
    assert [one.name for one in list_datasets(tmp_path / "cache")] == ["x"]


def test_arguments_that_cannot_work(add, tmp_path, write_tree, encode, base):
    given = write_tree({"cat/a.png": encode()}, "feedback")
    with pytest.raises(UsageError, match=r"^x-with-feedback needs one folder, 2 were given; use `darkroom data add"):
        add("x-with-feedback", given, given)
    with pytest.raises(UsageError, match=r"^x-with-feedback-with-feedback would hold feedback twice; use `darkroom "):
        add("x-with-feedback-with-feedback", given)
    with pytest.raises(UsageError, match=r"^image size 32 is not possible: .* has 16x16 pixels; give image size 16$"):
        add("x-with-feedback", given, image_size=32)
    with pytest.raises(DataError, match=r"^data set 'y' is not in .*; add it with `darkroom data add y --from PATH`$"):
        add("y-with-feedback", given)
    (tmp_path / "nothing").touch()
    with pytest.raises(DataError, match=r"nothing is no folder"):
        add("x-with-feedback", tmp_path / "nothing")


def test_feedback_is_left_out_by_its_names_and_the_set_itself_is_not(add, tmp_path, write_tree, encode, base):
    given = write_tree({"cat/a.png": encode((4, 5, 6)), "cat/b.png": encode((1, 2, 3))}, "feedback")
    table = tmp_path / "names.txt"
    table.write_text("feedback/cat/a.png\nfeedback/cat/c.png\n")
    added = add("x-with-feedback", given, exclude=[table])
    assert read_colours(added.dataset.splits["train"]) == [*read_colours(base.splits["train"]), (1, 2, 3)]
    assert added.dataset.count_feedback() == 1
    assert [(one.name, one.reason) for one in added.skipped] == [
        ("feedback/cat/a.png", "named in names.txt"),
        ("feedback/cat/c.png", "named for exclusion, but not in the source"),
    ]
    table.write_text("train/0\n")
    with pytest.raises(DataError, match=r"^train/0: not feedback, but images of the data set"):
        add("x-with-feedback", given, exclude=[table])
