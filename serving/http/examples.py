"""Lines that send a form as an endpoint reads it, for the answer to one that is wrong."""

import json

from serving.models.predictions import FIELD_NAME, FormExamples

# Endpoints that read a form, with its texts.
_FORMS: dict[str, dict[str, str]] = {"/v1/predict": {}, "/v1/explain": {}, "/v1/feedback": {"label": "cat"}}
_FILE = "cat.jpg"


def write_curl(path: str, url: str, has_keys: bool) -> str:
    """Return the line for a shell; that of predictions for a path that reads no form.

    Args:
        path: Path of the endpoint.
        url: Address of the service.
        has_keys: True if the service asks for an API key.
    """
    path = path if path in _FORMS else "/v1/predict"
    texts = "".join(f" -F {name}={value}" for name, value in _FORMS[path].items())
    key = " -H 'X-API-Key: KEY'" if has_keys else ""
    return f"curl -F {FIELD_NAME}=@{_FILE}{texts}{key} {url}{path}"


def write_examples(path: str, url: str, has_keys: bool) -> FormExamples | None:
    """Return the lines for a shell, Python and JavaScript; None for a path that reads no form.

    Args:
        path: Path of the endpoint.
        url: Address of the service.
        has_keys: True if the service asks for an API key.
    """
    if path not in _FORMS:
        return None
    texts, address = _FORMS[path], json.dumps(url + path)
    data = f", data={json.dumps(texts)}" if texts else ""
    key = json.dumps({"X-API-Key": "KEY"})
    fields = "".join(f"form.append({json.dumps(name)}, {json.dumps(value)}); " for name, value in texts.items())
    return FormExamples(
        curl=write_curl(path, url, has_keys),
        python=(
            f'import httpx; print(httpx.post({address}, files={{"{FIELD_NAME}": open("{_FILE}", "rb")}}{data}'
            f"{f', headers={key}' if has_keys else ''}).json())"
        ),
        javascript=(
            f'const form = new FormData(); form.append("{FIELD_NAME}", input.files[0]); {fields}const answer = '
            f'await (await fetch({address}, {{method: "POST", {f"headers: {key}, " if has_keys else ""}'
            "body: form})).json();"
        ),
    )
