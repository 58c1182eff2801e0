import gc
import random
import shutil
import time
import weakref

import pytest

from serving.bundle.store import (
    MODEL_FILE,
    BundleReference,
    ChallengerReference,
    hash_file,
    read_challenger,
    read_pointer,
    write_challenger,
    write_pointer,
)
from serving.errors import BadParameterError, NoSuchModelError, OverloadedError
from serving.models import model_set
from serving.models.classifier import Classifier
from serving.models.model_set import ModelSet, find_bundles_dir
from tests.unit.serving.tiny_bundle import make_bundle, point_at, release


@pytest.fixture
def models(tmp_path):
    return ModelSet(tmp_path / "bundles", threads=1)


def load(models, *names):
    for name in names:
        release(models.bundles_dir, name)
    models.refresh()


def test_nothing_is_loaded_from_an_empty_home(models):
    models.refresh()
    assert models.names == []
    with pytest.raises(OverloadedError):
        models.select(None)
    with pytest.raises(NoSuchModelError, match="loaded: none"):
        models.select("cifar10")


def test_the_only_model_needs_no_name(models):
    load(models, "food")
    assert models.select(None).manifest.name == "food"


def test_cifar10_is_meant_among_several(models):
    load(models, "food", "cifar10")
    assert models.select(None).manifest.name == "cifar10"
    assert models.select("food").manifest.name == "food"


def test_several_models_without_cifar10_need_a_name(models):
    load(models, "food", "birds")
    with pytest.raises(BadParameterError, match="loaded: birds, food"):
        models.select(None)


def test_an_unknown_name_lists_the_known(models):
    load(models, "food", "cifar10")
    with pytest.raises(NoSuchModelError, match="'dogs' is loaded; loaded: cifar10, food"):
        models.select("dogs")


def test_every_change_is_told_once(tmp_path):
    told = []
    models = ModelSet(tmp_path / "bundles", threads=1, on_change=told.append)
    models.refresh()
    load(models, "cifar10")
    models.refresh()
    assert [[model.name for model in answer.models] for answer in told] == [[], ["cifar10"]]


def test_a_new_pointer_is_followed_and_an_old_one_costs_nothing(models):
    load(models, "cifar10")
    first = models.select(None)
    models.refresh()
    assert models.select(None) is first
    release(models.bundles_dir, version="2", softness=9000.0)
    models.refresh()
    second = models.select(None)
    assert (first.version, second.version) == ("1", "2")
    assert second.identity.sha256 != first.identity.sha256


def test_a_damaged_new_bundle_keeps_the_old_model(models):
    load(models, "cifar10")
    first = models.select(None)
    folder = make_bundle(models.bundles_dir, softness=9000.0)
    (folder / MODEL_FILE).write_bytes(b"damaged")
    point_at(models.bundles_dir, "cifar10", "2", folder)
    models.refresh()
    assert models.select(None) is first
    (problem,) = models.describe().problems
    assert problem.name == "cifar10"
    assert "was changed after its release" in problem.message
    release(models.bundles_dir, version="3", softness=9000.0)
    models.refresh()
    assert models.select(None).version == "3"
    assert models.describe().problems == ()


def test_a_bundle_that_comes_after_its_pointer_is_tried_again(models, monkeypatch):
    monkeypatch.setattr(model_set, "RETRY_INTERVAL_S", 0.0)
    folder = release(models.bundles_dir)
    hidden = folder.rename(models.bundles_dir.parent / "hidden")
    models.refresh()
    assert models.names == []
    hidden.rename(folder)
    models.refresh()
    assert models.names == ["cifar10"]


def test_a_failure_is_not_tried_again_at_once(models):
    folder = release(models.bundles_dir)
    hidden = folder.rename(models.bundles_dir.parent / "hidden")
    models.refresh()
    hidden.rename(folder)
    models.refresh()
    assert models.names == []


def test_one_bad_release_does_not_hide_the_others(models):
    folder = release(models.bundles_dir, "birds")
    (folder / MODEL_FILE).unlink()
    load(models, "food")
    assert models.names == ["food"]
    assert [problem.name for problem in models.describe().problems] == ["birds"]


def test_one_that_fails_as_nobody_foresaw_does_not_hide_the_others(models, monkeypatch, caplog):
    def load_or_fail(folder, *rest, **options):
        if folder.parent.name == "birds":
            raise MemoryError("std::bad_alloc")
        return Classifier(folder, *rest, **options)

    monkeypatch.setattr(model_set, "Classifier", load_or_fail)
    load(models, "birds", "food")
    assert models.names == ["food"]
    [problem] = models.describe().problems
    assert (problem.name, problem.message) == ("birds", "MemoryError: std::bad_alloc")
    assert "Traceback" in caplog.text


def test_a_bundle_of_another_name_is_refused(models):
    release(models.bundles_dir, "food")
    (models.bundles_dir / "food").rename(models.bundles_dir / "cifar10")
    models.refresh()
    assert models.names == []
    assert "says it is food" in models.describe().problems[0].message


def test_a_withdrawn_model_is_dropped(models):
    load(models, "food", "cifar10")
    shutil.rmtree(models.bundles_dir / "food")
    models.refresh()
    assert models.names == ["cifar10"]


def test_a_vanished_folder_keeps_what_is_loaded(models):
    load(models, "cifar10")
    shutil.rmtree(models.bundles_dir)
    models.refresh()
    assert models.names == ["cifar10"]


def test_watching_follows_a_release(models):
    models.watch(interval_s=0.01)
    try:
        release(models.bundles_dir)
        deadline = time.monotonic() + 10
        while not models.names and time.monotonic() < deadline:
            time.sleep(0.01)
        assert models.names == ["cifar10"]
    finally:
        models.stop()


def test_the_home_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    assert find_bundles_dir() == tmp_path / "bundles"
    assert find_bundles_dir(tmp_path / "other") == tmp_path / "other" / "bundles"
    monkeypatch.delenv("DARKROOM_HOME")
    monkeypatch.chdir(tmp_path)
    assert find_bundles_dir() == tmp_path / ".darkroom" / "bundles"


def test_nothing_of_a_withdrawn_model_is_kept(models):
    load(models, "cifar10")
    kept = [weakref.ref(models.select(None))]
    release(models.bundles_dir, version="2", softness=9000.0)
    models.refresh()
    kept.append(weakref.ref(models.select(None)))
    shutil.rmtree(models.bundles_dir / "cifar10")
    models.refresh()
    gc.collect()
    assert [one() for one in kept] == [None, None]


def test_going_back_takes_the_model_that_is_still_loaded(models):
    load(models, "cifar10")
    first = models.select(None)
    first_folder = models.bundles_dir / "cifar10" / read_pointer(models.bundles_dir, "cifar10").bundle
    release(models.bundles_dir, version="2", softness=9000.0)
    models.refresh()
    assert models.select(None).version == "2"
    (first_folder / MODEL_FILE).unlink()
    point_at(models.bundles_dir, "cifar10", "1", first_folder)
    models.refresh()
    assert models.select(None) is first


def challenge(models, version="2", share=0.0, **options):
    folder = make_bundle(models.bundles_dir, **{"softness": 9000.0, **options})
    sha256 = hash_file(folder / "manifest.json")
    reference = ChallengerReference(version=version, bundle=folder.name, manifest_sha256=sha256, share=share)
    write_challenger(models.bundles_dir, "cifar10", reference)
    return folder


def test_a_challenger_is_loaded_beside_the_champion_and_dropped(models):
    load(models, "cifar10")
    champion = models.select(None)
    assert models.get_challenger("cifar10") is None
    challenge(models)
    models.refresh()
    challenger = models.get_challenger("cifar10")
    assert (challenger.version, models.select(None)) == ("2", champion)
    point_at(models.bundles_dir, "cifar10", "2", models.bundles_dir / "cifar10" / challenger_bundle(models))
    models.refresh()
    assert models.select(None) is challenger, "it is verified and loaded already"
    write_challenger(models.bundles_dir, "cifar10", None)
    models.refresh()
    assert models.get_challenger("cifar10") is None
    assert models.select(None) is challenger
    point_at(models.bundles_dir, "cifar10", "2", models.bundles_dir / "cifar10" / challenger._folder.name)
    models.refresh()  # the same once more
    shutil.rmtree(champion._folder)
    point_back(models.bundles_dir, champion)
    models.refresh()
    assert models.select(None) is champion, "the one before is still loaded"


def test_a_canary_answers_its_share_of_the_requests(models):
    load(models, "cifar10")
    champion = models.select(None)
    assert models.draw(champion) is champion
    challenge(models)
    models.refresh()
    assert {models.draw(champion) for _ in range(100)} == {champion}, "it looks only"
    challenge(models, share=0.1)
    models.refresh()
    canary = models.get_challenger("cifar10")
    random.seed(0)
    drawn = [models.draw(champion) for _ in range(20_000)]
    assert set(drawn) == {champion, canary}
    assert drawn.count(canary) / len(drawn) == pytest.approx(0.1, abs=0.01)
    answer = models.describe()
    assert [one.version for one in answer.answering] == ["1", "2"]
    assert answer.models[0].challenger.share == 0.1
    challenge(models, share=1.0)
    models.refresh()
    assert models.draw(champion) is models.get_challenger("cifar10")
    write_challenger(models.bundles_dir, "cifar10", None)
    models.refresh()
    assert models.draw(champion) is champion
    assert [one.version for one in models.describe().answering] == ["1"]


def test_a_canary_of_other_classes_answers_nothing(models):
    load(models, "cifar10")
    champion = models.select(None)
    reordered = {"classes": tuple(reversed(champion.manifest.classes))}
    challenge(models, share=1.0, manifest=reordered)
    models.refresh()
    assert models.draw(champion) is champion
    (problem,) = models.describe().problems
    assert problem.name == "cifar10 (challenger)"
    assert problem.message.startswith("version 2 has other classes than the champion")
    challenge(models, share=0.0, manifest=reordered)
    models.refresh()
    assert models.get_challenger("cifar10").version == "2", "shadow traffic it may get"
    challenge(models, share=1.0, manifest=reordered)
    models.refresh()
    assert models.get_canary("cifar10") is None, "although its bundle was loaded before"


def test_a_refused_canary_is_not_opened_each_time_that_it_is_tried_again(models, monkeypatch):
    monkeypatch.setattr(model_set, "RETRY_INTERVAL_S", 0.0)
    load(models, "cifar10")
    challenge(models, share=1.0, manifest={"classes": tuple(reversed(models.select(None).manifest.classes))})
    monkeypatch.setattr(model_set, "Classifier", None)
    for _ in range(3):
        models.refresh()
        assert models.describe().problems[0].message.startswith("version 2 has other classes")


def test_a_canary_answers_no_champion_of_other_classes(models):
    load(models, "cifar10")
    classes = models.select(None).manifest.classes
    challenge(models, share=1.0)
    models.refresh()
    assert models.draw(models.select(None)).version == "2"
    folder = make_bundle(models.bundles_dir, softness=6000.0, manifest={"classes": tuple(reversed(classes))})
    point_at(models.bundles_dir, "cifar10", "3", folder)
    models.refresh()
    assert models.draw(models.select(None)).version == "3"
    assert models.get_canary("cifar10") is None
    [problem] = models.describe().problems
    assert problem.message.startswith("version 2 has other classes than the champion")


def test_a_canary_that_is_replaced_by_a_damaged_one_answers_no_more(models):
    load(models, "cifar10")
    challenge(models, share=1.0)
    models.refresh()
    assert models.draw(models.select(None)).version == "2"
    (challenge(models, "4", softness=7000.0) / MODEL_FILE).write_bytes(b"damaged")
    models.refresh()
    assert models.draw(models.select(None)).version == "1"
    assert models.get_challenger("cifar10") is None


def test_a_challenger_with_shadow_traffic_only_is_read_by_earlier_versions(models):
    load(models, "cifar10")
    challenge(models)
    BundleReference.model_validate_json((models.bundles_dir / "cifar10" / "challenger.json").read_bytes())


def point_back(bundles_dir, classifier):
    pointer = read_pointer(bundles_dir, "cifar10")
    fields = {"version": classifier.version, "bundle": classifier._folder.name}
    fields |= {"manifest_sha256": classifier._manifest_sha256}
    write_pointer(bundles_dir, "cifar10", pointer.model_copy(update=fields))


def challenger_bundle(models):
    return read_challenger(models.bundles_dir, "cifar10").bundle


def test_a_damaged_challenger_harms_nobody_and_is_named(models):
    load(models, "cifar10")
    folder = challenge(models)
    (folder / MODEL_FILE).write_bytes(b"damaged")
    models.refresh()
    assert models.get_challenger("cifar10") is None
    assert models.select(None).version == "1"
    (problem,) = models.describe().problems
    assert (problem.name, "was changed" in problem.message) == ("cifar10 (challenger)", True)


def test_following_goes_on_after_what_nobody_foresaw(models, monkeypatch, caplog):
    failures = []

    def fail(_):
        failures.append(None)
        raise KeyError("surprise")

    with monkeypatch.context() as patch:
        patch.setattr(model_set, "list_released", fail)
        models.bundles_dir.mkdir()
        models.watch(interval_s=0.01)
        try:
            deadline_s = time.monotonic() + 10
            while len(failures) < 3 and time.monotonic() < deadline_s:
                time.sleep(0.01)
            assert len(failures) >= 3
        finally:
            models.stop()
    assert "following the releases failed; it goes on" in caplog.text
