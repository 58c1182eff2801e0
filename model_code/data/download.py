"""Downloads that survive a cut connection: continued where they stopped, checked, then renamed into place."""

import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from model_code.data.checksums import compute_md5, format_mismatch
from model_code.data.progress import show_progress
from model_code.disk import check_free_space, flush_folder, format_size, hold_lock, writing_to
from model_code.errors import ChecksumError, DownloadError, UsageError

_BLOCK_BYTES = 2**16
_RETRIED_STATUS = {408, 425, 429}


class _InterruptedError(Exception):
    """One try did not finish; another may."""


def download_file(
    url: str,
    path: Path,
    expected_md5: str,
    *,
    tries: int = 5,
    first_pause_s: float = 1.0,
    timeout_s: float = 30.0,
    is_progress_shown: bool = True,
) -> Path:
    """Fetch one file, continuing `<path>.part` when the server still has the same version.

    Args:
        url: http or https address.
        path: Target file; left alone when it is there and its checksum matches, replaced when not.
        expected_md5: Published MD5, hexadecimal.
        tries: Tries in a row without any progress before giving up.
        first_pause_s: Pause after the first failure, seconds; doubled after each further one.
        timeout_s: Longest wait for the next bytes, seconds.
        is_progress_shown: True to show progress.

    Returns:
        `path`.

    Raises:
        UsageError: The address is not http or https.
        DownloadError: It did not finish; what came is kept and the next call continues it.
        ChecksumError: The whole file came but is not the published one; it is removed.
        DiskFullError: The disk is full; what came is kept.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"address {url!r} is not allowed; give one that begins with http:// or https://")
    with hold_lock(path.with_name(f".{path.name}.lock"), f"downloading {path.name}"):
        if path.is_file():
            if compute_md5(path) == expected_md5:
                return path
            path.unlink()
        part = path.with_name(f"{path.name}.part")
        _fetch(
            url,
            part,
            tries=tries,
            first_pause_s=first_pause_s,
            timeout_s=timeout_s,
            is_progress_shown=is_progress_shown,
        )
        found_md5 = compute_md5(part)
        if found_md5 != expected_md5:
            _forget(part)
            raise ChecksumError(f"{format_mismatch(path, found_md5, expected_md5)} (it was removed)")
        with writing_to(path.parent, 0, f"downloading {path.name}"):
            part.replace(path)
            flush_folder(path.parent)
            _forget(part)
    return path


def _fetch(
    url: str, part: Path, *, tries: int, first_pause_s: float, timeout_s: float, is_progress_shown: bool
) -> None:
    failures = 0
    furthest_bytes = _get_size(part)
    while True:
        try:
            _fetch_rest(url, part, timeout_s, is_progress_shown)
        except _InterruptedError as error:
            reached_bytes = _get_size(part)
            failures = 1 if reached_bytes > furthest_bytes else failures + 1
            furthest_bytes = max(furthest_bytes, reached_bytes)
            if failures >= tries:
                raise DownloadError(
                    f"{url} did not come through in {tries} tries ({error}); {format_size(reached_bytes)} "
                    f"are kept in {part}: run the command again to continue"
                ) from error
            time.sleep(first_pause_s * 2 ** (failures - 1))
        else:
            return


def _fetch_rest(url: str, part: Path, timeout_s: float, is_progress_shown: bool) -> None:
    """Make one try.

    Raises:
        _InterruptedError: It failed in a way that another try may not.
        DownloadError: Another try would fail alike.
        DiskFullError: The disk is full.
    """
    offset = _get_size(part)
    headers = {"User-Agent": "darkroom"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if _validator_file(part).is_file():
            headers["If-Range"] = _validator_file(part).read_text()
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            _save(response, part, offset, is_progress_shown)
    except urllib.error.HTTPError as error:
        error.close()
        _judge_refusal(error, url, part, offset)
    except (http.client.HTTPException, OSError) as error:
        raise _InterruptedError(str(error) or type(error).__name__) from error


def _save(response: http.client.HTTPResponse, part: Path, offset: int, is_progress_shown: bool) -> None:
    length = response.headers.get("Content-Length")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            _forget(part)
            raise _InterruptedError(f"asked for bytes from {offset}, got {response.headers.get('Content-Range')!r}")
    else:
        offset = 0
    total = offset + int(length) if length else 0
    purpose = f"downloading {part.name.removesuffix('.part')}"
    with writing_to(part.parent, max(total - offset, 0), purpose):
        check_free_space(part.parent, total - offset, purpose)
        _keep_validator(response, part)
        file = part.open("ab" if offset else "wb")
    with file, show_progress(purpose, total, "B", is_progress_shown, done=offset) as advance:
        received = offset
        while block := response.read(_BLOCK_BYTES):
            with writing_to(part.parent, max(total - received, 0), purpose):
                file.write(block)
                file.flush()
            received += len(block)
            advance(len(block))
        if total and received != total:
            raise _InterruptedError(f"the connection ended after {received} of {total} bytes")


def _judge_refusal(error: urllib.error.HTTPError, url: str, part: Path, offset: int) -> None:
    if error.code == 416:
        if error.headers.get("Content-Range") == f"bytes */{offset}":
            return
        _forget(part)
        raise _InterruptedError("the part that was kept is longer than the file") from error
    if error.code < 500 and error.code not in _RETRIED_STATUS:
        raise DownloadError(f"{url} answers {error.code} {error.reason}; give the file with --from PATH") from error
    raise _InterruptedError(f"the server answers {error.code} {error.reason}") from error


def _keep_validator(response: http.client.HTTPResponse, part: Path) -> None:
    """Remember which version of the file this is; If-Range takes no weak entity tags."""
    tag = response.headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    if validator:
        _validator_file(part).write_text(validator)
    else:
        _validator_file(part).unlink(missing_ok=True)


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def _get_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
