"""Prefect's API server as a child of the command, on a socket that it inherits."""

import os
import socket
import sys

from serving.decoding.sandbox import end_with_parent


def main() -> None:
    """Serve until the parent ends, however it ends."""
    descriptor, parent = map(int, sys.argv[1:])
    end_with_parent()
    if os.getppid() != parent:
        return
    # Settings in the environment are for other servers: a password that no client here knows, another database.
    for name in [name for name in os.environ if name.startswith(("PREFECT_SERVER_", "PREFECT_API_"))]:
        del os.environ[name]
    # As Prefect starts a temporary server: no pages, only the services that one needs.
    os.environ |= {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        # Nobody has automations here.
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    }

    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="critical", lifespan="on", access_log=False
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main()
