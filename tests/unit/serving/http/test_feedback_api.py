"""Feedback whose disk hangs."""

import asyncio
import threading

import pytest

from serving.errors import NotStoredError
from serving.http import feedback_api
from serving.http.feedback_api import FeedbackApi


def test_behind_a_hung_disk_feedback_is_refused_at_once_and_goes_on_after(tmp_path, monkeypatch):
    monkeypatch.setattr(feedback_api, "_HUNG_S", 0.2)
    api, free = FeedbackApi(None, None, tmp_path, lambda *_: None), threading.Event()

    async def store():
        hanging = asyncio.create_task(api.on_disk(free.wait, 30))
        await asyncio.sleep(0.5)
        with pytest.raises(NotStoredError, match=r"has not answered for 0\.2 seconds"):
            await asyncio.wait_for(api.on_disk(bytes, 1), 1)
        assert api._disk._work_queue.empty(), "nothing waits in memory"
        free.set()
        await hanging
        assert await api.on_disk(bytes, 1) == b"\0"

    asyncio.run(store())
    api.close()
