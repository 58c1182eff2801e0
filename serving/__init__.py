"""The prediction service. It stands alone: onnxruntime, numpy, Pillow and BentoML, never torch."""

import os
import signal
import threading

# onnxruntime reads it when it is first imported, and would report its use.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# What listens on this machine is never reached through a proxy. Of the two spellings some libraries read one only.
_DIRECT = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost,::1")))
os.environ |= {"no_proxy": _DIRECT, "NO_PROXY": _DIRECT}

# The kernel ignores a signal to process 1, as in a container without an init, for which there is no handler.
if os.getpid() == 1 and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
