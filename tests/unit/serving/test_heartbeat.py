import asyncio
import contextlib
import os
import threading

import pytest

from serving import supervisor
from serving.heartbeat import Heartbeat
from serving.models.model_set import ModelSet
from serving.models.registry import RegistryFollower
from tests.unit.serving.tiny_bundle import release


def test_a_thread_hangs_only_while_it_works():
    now_s = 0.0
    heartbeat = Heartbeat(9.0, clock=lambda: now_s)
    now_s = 100.0
    assert not heartbeat.is_hung
    with contextlib.suppress(OSError), heartbeat.work():
        now_s = 108.0
        heartbeat.beat()
        now_s = 116.0
        assert not heartbeat.is_hung
        now_s = 118.0
        assert heartbeat.is_hung
        raise OSError("full")
    assert not heartbeat.is_hung


def wait_for(is_true):
    for _ in range(600):
        if is_true():
            return True
        threading.Event().wait(0.05)
    return False


@pytest.mark.parametrize("ended", ["_poll", "_follow"])
def test_a_model_set_whose_threads_ended_is_not_alive(tmp_path, monkeypatch, ended):
    release(tmp_path / "bundles")
    monkeypatch.setattr(RegistryFollower, "sync", lambda *_: None)
    monkeypatch.setattr(ModelSet, ended, lambda *_: None)
    models = ModelSet(tmp_path / "bundles", threads=1, registry=RegistryFollower("http://127.0.0.1:1", tmp_path))
    models.refresh()
    assert models.is_alive
    models.watch()
    assert wait_for(lambda: not models.is_alive)
    models.stop()


def test_a_look_at_the_registry_that_makes_no_progress_hangs(tmp_path, monkeypatch):
    follower, is_let = RegistryFollower("http://127.0.0.1:1", tmp_path), threading.Event()
    monkeypatch.setattr(follower, "_heartbeat", Heartbeat(0.2))
    monkeypatch.setattr(follower, "_remove_stale", lambda: is_let.wait(60))
    looking = threading.Thread(target=follower.sync)
    looking.start()
    assert wait_for(lambda: follower.is_hung)
    is_let.set()
    looking.join(60)
    assert not follower.is_hung


def test_a_service_sends_its_supervisor_heartbeats_only_while_it_is_alive(monkeypatch):
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    monkeypatch.setenv(supervisor.HEARTBEAT_VARIABLE, str(writer))
    monkeypatch.setattr(supervisor, "BEAT_INTERVAL_S", 0.01)
    answers = iter([True, True])

    async def run():
        beating = supervisor.start_heartbeat(lambda: next(answers, False))
        await asyncio.sleep(0.3)
        beating.cancel()

    with os.fdopen(reader, "rb", buffering=0) as beats:
        asyncio.run(run())
        assert beats.read(100) == b"..."  # of the start, and of two times that it was alive
    os.close(writer)
