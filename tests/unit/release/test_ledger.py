import re

import pytest
from mlflow.exceptions import MlflowException

from flows.operations.history import check_rollback
from flows.operations.removal import check_retirable, retire
from model_code.errors import ReleaseError, UsageError
from model_code.release import ledger
from model_code.release.changes import LEDGER_FILE, find_previous, find_rollback_of, read_ledger, read_settled
from model_code.release.ledger import (
    check_reason,
    complete,
    end_challenge,
    find_champion,
    move_champion,
)
from model_code.release.versions import get_champion, get_version, register_version, set_challenger
from serving.bundle.store import (
    BUNDLE_TAG,
    CHAMPION,
    MANIFEST_TAG,
    POINTER_FILE,
    SHARE_TAG,
    BundleReference,
    ChallengerReference,
    Change,
    read_challenger,
    read_champion,
    read_pointer,
    write_challenger,
)
from serving.errors import BundleError


@pytest.fixture
def name(request):
    """A registered name of each test's own."""
    return re.sub(r"\W", "-", request.node.name.removeprefix("test_"), flags=re.ASCII)


@pytest.fixture
def register(client, make_bundle, name):
    """Register another bundle; its version comes back."""

    def register():
        folder, manifest = make_bundle(name)
        return get_version(client, name, register_version(client, folder, manifest))

    return register


@pytest.fixture
def move(client, bundles_dir, name):
    def move(version, action="promote", why="because"):
        changes = complete(client, bundles_dir, name)
        before = changes[-1].to_version if changes else None
        fields = {"action": action, "before": before, "why": why, "verdict": "well"}
        return move_champion(client, bundles_dir, name, version=version, **fields)

    return move


def test_a_settled_history_is_read_without_mlflow_and_an_unsettled_one_is_not(
    store, client, bundles_dir, name, register, move, monkeypatch
):
    settings = store[0]
    assert read_settled(settings, name) == ()
    first, second = register(), register()
    assert read_settled(settings, name) is None, "registered, and never champion"
    changes = (move(first), move(second))
    assert read_settled(settings, name) == changes
    third = register()
    monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
    with pytest.raises(UsageError, match=f"^version {third.version} of {name} was never champion: give a reason"):
        check_rollback(name, str(third.version), "")
    check_rollback(name, str(third.version), "because")
    with pytest.raises(ReleaseError, match=r"^version 1 of .* is what `darkroom rollback .*` goes back to; it stays$"):
        check_retirable(settings, name, "1")
    check_retirable(settings, name, str(third.version))
    client.set_registered_model_alias(name, CHAMPION, "1")
    assert read_settled(settings, name) is None, "the alias was moved by other means"
    client.set_registered_model_alias(name, CHAMPION, "2")
    ledger = bundles_dir / name / LEDGER_FILE
    content = ledger.read_bytes()
    for damaged in (content.splitlines(keepends=True)[0], content[:-5]):
        ledger.write_bytes(damaged)
        assert read_settled(settings, name) is None, "a line is missing"
    ledger.write_bytes(content)
    pointer = bundles_dir / name / POINTER_FILE
    pointer.rename(f"{pointer}.away")
    assert read_settled(settings, name) is None, "the pointer is lost"
    assert complete(client, bundles_dir, name) == changes
    assert read_settled(settings, name) == changes


def test_tags_of_an_earlier_version_count(store, client, bundles_dir, name, register, move):
    changes = (move(register()), move(register()))
    client.delete_model_version_tag(name, "1", "mlflow.darkroom.change.1")
    client.set_model_version_tag(name, "1", "change.1", changes[0].model_dump_json())
    client.set_model_version_tag(name, "1", "change.reason", "a person's own tag")
    assert read_settled(store[0], name) == changes
    (bundles_dir / name / LEDGER_FILE).unlink()
    assert complete(client, bundles_dir, name) == changes


def test_every_move_is_written_in_four_places(client, bundles_dir, name, register, move):
    first, second = register(), register()
    changes = (move(first), move(second), move(first, "rollback", "it was worse"))
    assert [(each.number, each.action, each.from_version, each.to_version) for each in changes] == [
        *((1, "promote", None, "1"), (2, "promote", "1", "2"), (3, "rollback", "2", "1"))
    ]
    assert changes[2].why == "it was worse"
    assert "@" in changes[0].by
    assert changes[0].at.endswith("+00:00")
    assert read_ledger(bundles_dir, name) == changes
    pointer, folder, _ = read_champion(bundles_dir, name)
    assert (pointer.version, pointer.change, folder.name) == ("1", changes[2], first.tags["bundle"])
    assert str(get_champion(client, name).version) == "1"
    assert find_champion(client, name, changes) == "1"
    tags = {key: value for version in "12" for key, value in client.get_model_version(name, version).tags.items()}
    assert [Change.model_validate_json(tags[f"mlflow.darkroom.change.{number}"]) for number in (1, 2, 3)] == list(
        changes
    )


def test_lines_are_only_added(bundles_dir, name, register, move):
    file = bundles_dir / name / LEDGER_FILE
    before = b""
    for _ in range(3):
        move(register())
        content = file.read_bytes()
        assert content.startswith(before)
        assert len(content) > len(before)
        before = content


def test_a_lost_ledger_is_made_anew_from_the_registry(client, bundles_dir, name, register, move, tmp_path):
    versions = [register() for _ in range(3)]
    changes = tuple(move(version) for version in versions)
    content = (bundles_dir / name / LEDGER_FILE).read_bytes()
    (bundles_dir / name / LEDGER_FILE).unlink()
    assert read_ledger(bundles_dir, name) == ()
    (tmp_path / "file").write_text("")
    assert read_ledger(tmp_path / "file", name) == (), "where DARKROOM_HOME is no folder nothing is released"
    assert complete(client, bundles_dir, name) == changes
    assert (bundles_dir / name / LEDGER_FILE).read_bytes() == content


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("step", ["alias", "tag", "line"])
def test_a_move_that_was_cut_off_is_completed(client, bundles_dir, name, register, move, monkeypatch, step):
    first, second = register(), register()
    move(first)

    def die(*_):
        raise _KilledError

    with monkeypatch.context() as patch:
        if step == "line":
            patch.setattr(ledger, "_append", die)
        else:
            method = {"alias": "set_registered_model_alias", "tag": "set_model_version_tag"}[step]
            patch.setattr(type(client), method, die)
        with pytest.raises(_KilledError):
            move(second)
    assert read_pointer(bundles_dir, name).version == "2"
    assert [change.to_version for change in read_ledger(bundles_dir, name)] == ["1"]
    changes = complete(client, bundles_dir, name)
    assert [change.to_version for change in changes] == ["1", "2"]
    assert read_ledger(bundles_dir, name) == changes
    assert find_champion(client, name, changes) == "2"
    assert complete(client, bundles_dir, name) == changes


def test_a_torn_line_is_not_a_change(bundles_dir, name, register, move):
    first, second = register(), register()
    change = move(first)
    file = bundles_dir / name / LEDGER_FILE
    with file.open("ab") as stream:
        stream.write(b'{"number": 2, "act')
    assert read_ledger(bundles_dir, name) == (change,)
    other = move(second)
    assert read_ledger(bundles_dir, name) == (change, other)


@pytest.mark.parametrize("why", ["two\u2028lines", "next\u0085line", "a\nb", '"quoted" \\u2028'])
def test_any_reason_is_one_line(bundles_dir, name, register, move, why):
    changes = (move(register(), why=why), move(register()))
    assert read_ledger(bundles_dir, name) == changes
    assert changes[0].why == why


def test_a_reason_has_an_end():
    check_reason("x" * 1000)
    with pytest.raises(UsageError, match="a reason of 1001 characters; --why takes at most 1000"):
        check_reason("x" * 1001)


@pytest.mark.parametrize("damage", ["lost", "damaged", "behind"])
def test_a_pointer_follows_the_ledger(client, bundles_dir, name, register, move, damage):
    move(register())
    file = bundles_dir / name / "champion.json"
    old = file.read_bytes()
    change = move(register())
    if damage == "lost":
        file.unlink()
    else:
        file.write_bytes(old if damage == "behind" else b"{")
    complete(client, bundles_dir, name)
    pointer, _, _ = read_champion(bundles_dir, name)
    assert (pointer.version, pointer.change) == ("2", change)


def test_of_two_homes_that_move_at_once_the_registry_has_one(
    client, bundles_dir, name, register, move, tmp_path, monkeypatch
):
    first, second, third = register(), register(), register()
    move(first)
    complete(client, tmp_path, name)

    def die(*_):
        raise _KilledError

    fields = {"action": "promote", "before": "1", "why": "theirs", "verdict": "well"}
    with monkeypatch.context() as patch:
        patch.setattr(type(client), "set_registered_model_alias", die)
        with pytest.raises(_KilledError):
            move_champion(client, tmp_path, name, version=second, **fields)
    theirs = move(third)
    assert complete(client, tmp_path, name)[-1] == theirs
    assert [change.number for change in read_ledger(tmp_path, name)] == [1, 2]
    assert read_pointer(tmp_path, name).version == "3"
    assert str(get_champion(client, name).version) == "3"


def test_two_homes_that_move_in_the_same_moment_agree_in_the_end(
    client, bundles_dir, name, register, move, tmp_path, monkeypatch
):
    """Both have read the ledger before either writes: two changes have the number 2."""
    first, second, third = register(), register(), register()
    move(first)
    complete(client, tmp_path, name)
    read_tags, calls = ledger._read_tags, []

    def read_before_the_other_writes(*given):
        found = read_tags(*given)
        calls.append(found)
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(ledger, "_read_tags", read_tags)
                fields = {"action": "promote", "before": "1", "why": "theirs", "verdict": "well"}
                move_champion(client, tmp_path, name, version=second, **fields)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_read_tags", read_before_the_other_writes)
        fields = {"action": "promote", "before": "1", "why": "ours", "verdict": "well"}
        ours = move_champion(client, bundles_dir, name, version=third, **fields)
    tags = [
        key for version in "123" for key in client.get_model_version(name, version).tags if key.endswith("change.2")
    ]
    assert len(tags) == 2, "the collision"
    anew = tmp_path / "third home"
    changes = complete(client, anew, name)
    assert [change.number for change in changes] == [1, 2]
    assert complete(client, anew, name) == changes
    assert find_champion(client, name, changes) == "3" == ours.to_version


def test_a_move_that_another_home_was_faster_with_is_told(
    client, bundles_dir, name, register, move, tmp_path, monkeypatch
):
    first, second, third = register(), register(), register()
    move(first)
    complete(client, tmp_path, name)
    point, theirs = ledger._point, []

    def be_overtaken(*given):
        if not theirs:
            theirs.append(None)
            fields = {"action": "promote", "before": "1", "why": "theirs", "verdict": "well"}
            theirs[0] = move_champion(client, tmp_path, name, version=second, **fields)
        point(*given)

    monkeypatch.setattr(ledger, "_point", be_overtaken)
    with pytest.raises(
        ReleaseError, match=r"version 2 became champion of .* at the same moment as version 3, which did"
    ):
        move(third)
    assert read_ledger(bundles_dir, name)[-1] == theirs[0]
    assert read_pointer(bundles_dir, name).version == "2"


def test_a_challenger_that_wins_is_none_any_more(client, bundles_dir, name, register, move):
    first, second, third = register(), register(), register()
    move(first)

    def challenge(version):
        reference = BundleReference(
            version=str(version.version), bundle=version.tags[BUNDLE_TAG], manifest_sha256=version.tags[MANIFEST_TAG]
        )
        write_challenger(bundles_dir, name, reference)
        set_challenger(client, name, str(version.version))

    challenge(second)
    move(third)
    assert read_challenger(bundles_dir, name).version == "2"
    move(second)
    with pytest.raises(BundleError, match="has no challenger"):
        read_challenger(bundles_dir, name)
    assert set(client.get_registered_model(name).aliases) == {CHAMPION}
    end_challenge(client, bundles_dir, name)  # nothing to end


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_another_champion_ends_a_canary(client, bundles_dir, name, register, move, action):
    first, second, third = register(), register(), register()
    move(third)
    move(first)
    fields = {"version": "2", "bundle": second.tags[BUNDLE_TAG], "manifest_sha256": second.tags[MANIFEST_TAG]}
    write_challenger(bundles_dir, name, ChallengerReference(**fields, share=0.5, since="2026"))
    set_challenger(client, name, "2", 0.5)
    assert get_version(client, name, "2").tags[SHARE_TAG] == "0.5"
    move(third, action)
    with pytest.raises(BundleError, match="has no challenger"):
        read_challenger(bundles_dir, name)
    assert SHARE_TAG not in get_version(client, name, "2").tags
    assert set(client.get_registered_model(name).aliases) == {CHAMPION}


def test_the_share_of_a_canary_goes_with_its_alias(client, name, register):
    register()
    register()

    def read():
        found = {number: get_version(client, name, number) for number in ("1", "2")}
        return {number: one.tags.get(SHARE_TAG) for number, one in found.items()}

    set_challenger(client, name, "1", 0.25)
    assert read() == {"1": "0.25", "2": None}
    set_challenger(client, name, "2", 0.5)
    assert read() == {"1": None, "2": "0.5"}
    set_challenger(client, name, "2")
    assert read() == {"1": None, "2": None}
    set_challenger(client, name, "1", 1)
    set_challenger(client, name, None)
    assert read() == {"1": None, "2": None}


def test_a_served_version_that_was_deleted_in_the_registry_is_named(
    client, bundles_dir, name, register, move, monkeypatch
):
    first, second = register(), register()
    move(first)

    def die(*_):
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "set_registered_model_alias", die)
        with pytest.raises(_KilledError):
            move(second)
    client.delete_model_version(name, str(second.version))
    with pytest.raises(
        ReleaseError, match=r"version 2 of .* is served and not in the registry, which has 1: .* remove "
    ):
        complete(client, bundles_dir, name)
    (bundles_dir / name / "champion.json").unlink()
    assert complete(client, bundles_dir, name)[-1].to_version == "1"
    assert read_pointer(bundles_dir, name).version == "1"


def test_a_registry_that_is_away_after_the_move_is_told(client, bundles_dir, name, register, move, monkeypatch):
    first, second = register(), register()
    move(first)

    def fail(*_):
        raise MlflowException("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "set_registered_model_alias", fail)
        with pytest.raises(
            ReleaseError, match=r"version 2 of .* is champion and served, but the registry could not be"
        ):
            move(second)
    assert read_pointer(bundles_dir, name).version == "2"
    assert complete(client, bundles_dir, name)[-1].to_version == "2"


def test_a_damaged_line_is_told(bundles_dir, name, register, move):
    move(register())
    file = bundles_dir / name / LEDGER_FILE
    file.write_text("nonsense\n" + file.read_text())
    with pytest.raises(ReleaseError, match=r"ledger\.jsonl is damaged; move it away and run `darkroom history"):
        read_ledger(bundles_dir, name)


def test_an_alias_that_was_moved_by_other_means_is_told(client, bundles_dir, name, register, move):
    first, second = register(), register()
    move(first)
    client.set_registered_model_alias(name, CHAMPION, second.version)
    changes = complete(client, bundles_dir, name)
    with pytest.raises(ReleaseError, match=r"champion is version 2, the ledger says version 1: the alias was moved by"):
        find_champion(client, name, changes)
    client.delete_registered_model_alias(name, CHAMPION)
    with pytest.raises(ReleaseError, match=r"champion is no version, the ledger says version 1"):
        find_champion(client, name, changes)


def test_what_another_home_wrote_is_taken_over(client, bundles_dir, name, register, move, tmp_path):
    first, second = register(), register()
    move(first)
    assert len(complete(client, tmp_path, name)) == 1
    theirs = move(second)
    assert complete(client, tmp_path, name)[-1] == theirs
    assert (tmp_path / name / LEDGER_FILE).read_bytes() == (bundles_dir / name / LEDGER_FILE).read_bytes()


def tell(*moves):
    """Changes out of versions; a version in brackets is gone back to."""
    changes, before = [], None
    for number, to in enumerate(moves, start=1):
        action, version = ("rollback", to[0]) if isinstance(to, list) else ("promote", to)
        fields = {"from_version": before, "to_version": version, "at": "", "by": "", "why": "", "verdict": ""}
        changes.append(Change(number=number, action=action, **fields))
        before = version
    return tuple(changes)


@pytest.mark.parametrize(
    ("moves", "previous"),
    [
        ((), None),
        (("1",), None),
        (("1", "2"), "1"),
        (("1", "2", "3"), "2"),
        (("1", "2", "3", ["2"]), "1"),
        (("1", "2", "3", ["2"], ["1"]), None),
        (("1", "2", ["1"], "3"), "1"),
        (("1", "2", "3", ["1"], "2"), "1"),
        (("1", ["7"]), "1"),
        (("1", "2", "1", "3", ["1"]), "2"),
    ],
)
def test_a_rollback_goes_to_the_champion_before(moves, previous):
    assert find_previous(tell(*moves)) == previous


def test_what_was_rolled_back_is_known():
    assert find_rollback_of(tell("1", "2", ["1"]), ["2"]).number == 3
    assert find_rollback_of(tell("1", "2", ["1"], "3"), ["2"]).number == 3
    assert find_rollback_of(tell("1", "2", ["1"], "2"), ["2"]) is None
    assert find_rollback_of(tell("1", "2"), ["1"]) is None
    assert find_rollback_of(tell("1", "2"), ["9"]) is None
    assert find_rollback_of(tell("1", "2", ["1"], "3"), ["2", "3"]) is None, "two versions of one run"
    assert find_rollback_of(tell("1", "3", "2", ["1"]), ["2", "3"]).number == 4


def test_what_a_rollback_goes_back_to_is_not_retired_after_another_was(
    store, client, bundles_dir, name, register, move
):
    settings = store[0]
    versions = [register() for _ in range(4)]
    changes = tuple(move(version) for version in versions)
    places = (settings.artifacts_dir, bundles_dir)
    before = [sorted(place.rglob("*")) for place in places]
    would_be_free = retire(settings, name, "1", is_dry_run=True)
    assert get_version(client, name, "1")
    assert [sorted(place.rglob("*")) for place in places] == before
    assert would_be_free == retire(settings, name, "1") > 0
    with pytest.raises(ReleaseError, match=f"{name} has no version 1; registered: 2, 3, 4"):
        retire(settings, name, "1", is_dry_run=True)
    assert read_settled(settings, name) == changes, "the rest is still read without MLflow"
    with pytest.raises(ReleaseError, match=f"version 3 of .* is what `darkroom rollback {name}` goes back to"):
        retire(settings, name, "3")
    retire(settings, name, "2")
    assert (bundles_dir / name / versions[2].tags[BUNDLE_TAG]).is_dir()


@pytest.mark.parametrize("tag", ["", ".", "..", "../other", "a/b"])
def test_a_tag_that_names_no_bundle_removes_none(store, client, bundles_dir, name, register, move, tag):
    first, *others = (register() for _ in range(3))
    for version in (first, *others):
        move(version)
    client.set_model_version_tag(name, "1", BUNDLE_TAG, tag)
    before = sorted(bundles_dir.rglob("*"))
    retire(store[0], name, "1")
    assert sorted(bundles_dir.rglob("*")) == before
