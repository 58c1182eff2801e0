"""A large answer, whose memory counts as a body's does until the client has taken it: the slowest one is given up."""

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.http.admission import Admission

# The server waits with the next piece until the client has taken most of those before.
PIECE_BYTES = 131_072


class HeldResponse(Response):
    """A JSON body that is sent in pieces."""

    media_type = "application/json"

    def __init__(self, content: bytes, admission: Admission) -> None:
        """Hold nothing yet.

        Args:
            content: JSON text.
            admission: Counts the bytes while they are sent.
        """
        super().__init__(content)
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer.

        Raises:
            OverloadedError: Together with the other requests it is too large; nothing is sent.
        """
        content = bytes(self.body)
        task = asyncio.current_task()
        assert task is not None, "an ASGI server runs requests as tasks"

        def give_up() -> None:
            task.cancel()

        with self._admission.hold() as holding:
            holding.take(len(content))
            try:
                with holding.read(give_up):
                    await self._send(content, send)
            except asyncio.CancelledError:
                if not holding.is_given_up:
                    raise
                # The answer is not complete: the server closes the connection.
                task.uncancel()

    async def _send(self, content: bytes, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(content), PIECE_BYTES):
            await send({"type": "http.response.body", "body": content[start : start + PIECE_BYTES], "more_body": True})
        await send({"type": "http.response.body"})
