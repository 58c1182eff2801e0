"""Side-by-side measurements that print a table and JSON."""

import model_code  # noqa: F401 - before any of them imports torch: it says how torch's threads wait
