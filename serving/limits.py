"""What the service accepts at most; the client keeps to the same numbers, so that it never sends in vain."""

MAX_PICTURE_BYTES = 10_000_000
MAX_PICTURES = 64
# One request may hold 64 small pictures or six of the largest.
MAX_BODY_BYTES = 64_000_000
# Pixels of all pictures of one request, as their headers state them: a small file can hold many.
MAX_REQUEST_PIXELS = 100_000_000
# Bytes of all requests that are being read or classified at one moment.
MAX_HELD_BYTES = 256_000_000
# Requests that wait for their pictures to be decoded and classified.
MAX_WAITING_REQUESTS = 64
BODY_TIMEOUT_S = 60.0
DEFAULT_TOP_K = 5
