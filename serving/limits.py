"""Limits of sizes, numbers and times, shared by the service and its client."""

import resource

MAX_IMAGE_BYTES = 10_000_000
MAX_IMAGES = 64
# One request may hold 64 small images or six of the largest.
MAX_BODY_BYTES = 64_000_000
LARGE_BODY_BYTES = 1_000_000
# Pixels of all images of one request, as their headers state them: a small file can hold many.
MAX_REQUEST_PIXELS = 100_000_000
# Pixels of an image that is decoded beside others of its kind: up to 20 bytes of memory for each. A JPEG, which is
# decoded at a fraction of its size, may have three times as many: 12 megapixels.
ORDINARY_PIXELS = 4_200_000
ORDINARY_JPEG_PIXELS = 3 * ORDINARY_PIXELS
# Bytes that have arrived of all requests that are being read or classified at one moment.
MAX_HELD_BYTES = 256_000_000
# Images that wait to be decoded and classified, and how long the last of them may have to wait.
MAX_WAITING_IMAGES = 1024
MAX_WAIT_S = 5.0
# How long an image may have to wait for a process that decodes it.
MAX_TURN_S = 0.5
# How long a request may go on with another image, or for twice its estimated work if that is longer: its client may
# have left, and others are refused meanwhile.
MAX_DECODE_S = 8.0
# Estimated work from which a request is a large one, and the share of room and time that large ones may take.
LARGE_WORK_S = 0.1
LARGE_SHARE = 0.75
# From the last byte of a request to its answer.
ANSWER_TIMEOUT_S = 60.0
BODY_TIMEOUT_S = 60.0
# From the first byte of a connection or request to the end of its headers.
HEAD_TIMEOUT_S = 20.0
# From the first unsent byte of an answer to the moment at which the client has taken all of it.
ANSWER_READ_TIMEOUT_S = 20.0
# Files that the service itself may have open: models, keys, logs, pipes to the decoding processes.
OWN_FILES = 100
# Connections beyond the largest number on which only probes are answered, each within a short time.
PROBE_CONNECTIONS = 64
PROBE_TIMEOUT_S = 2.0
# Connections at one moment: each may hold 0.3 MB, and is one of the files that the process may open.
_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
_HAS_ROOM = _OPEN_FILES in (resource.RLIM_INFINITY, max(_OPEN_FILES, 512 + PROBE_CONNECTIONS + OWN_FILES))
MAX_CONNECTIONS = 512 if _HAS_ROOM else max(1, _OPEN_FILES - PROBE_CONNECTIONS - OWN_FILES)
DEFAULT_TOP_K = 5
# Bytes of a request's address and headers, more or less: what arrives in one piece is read as a whole.
MAX_HEAD_BYTES = 65_536
# Each costs time on the event loop: 64 kB of short ones took it 30 ms.
MAX_HEADERS = 200
MAX_PARAMETERS = 20
# Versions of all models that have answered and do not any more, whose figures `/metrics` still shows.
MAX_GONE_VERSIONS = 8
