import socket
from itertools import islice

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from model_code.errors import TrackingError
from model_code.tracking.outage import Patience, describe, insist, is_lasting, naming_errors


@pytest.fixture
def closed_address():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_refused_connection_is_named_in_two_words(closed_address, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught, naming_errors("abc"):
        MlflowClient(closed_address).get_run("abc")
    assert str(caught.value) == (
        "MLflow cannot be reached (Connection refused); run abc is kept in its folder: start MLflow and repeat the "
        "same command, which goes on from there and trains no finished epoch again"
    )


def test_a_server_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MlflowException) as caught:
            MlflowClient(address).get_run("abc")
    assert not is_lasting(caught.value)
    assert describe(caught.value) == "timed out"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), True),
        (MlflowException("is deleted", INVALID_PARAMETER_VALUE), True),
        (OSError(28, "No space left on device"), True),
        (MlflowException("QueuePool limit", BAD_REQUEST), False),
        (MlflowException("Connection refused"), False),
        (requests.ConnectionError("reset by peer"), False),
        (requests.HTTPError("502"), False),
    ],
)
def test_what_repeating_mends(error, expected):
    assert is_lasting(error) == expected


def test_what_cannot_be_mended_is_not_repeated():
    calls = []

    def refuse():
        calls.append(1)
        raise MlflowException("first line\nsecond line", INVALID_PARAMETER_VALUE)

    with pytest.raises(TrackingError, match=r"^MLflow does not take run abc \(first line\);"):
        insist(refuse, "abc", "tiny", Patience())
    assert len(calls) == 1


def test_errors_of_our_own_are_not_taken_for_an_outage():
    with pytest.raises(TypeError):
        insist(lambda: None + 1, "abc", "tiny", Patience())


def test_a_request_is_repeated_until_it_is_answered(capsys):
    answers = [MlflowException("Connection refused")] * 2

    def ask():
        if answers:
            raise answers.pop()

    insist(ask, "abc", "tiny", Patience(0.01, 0.01, 30))
    assert answers == []
    assert capsys.readouterr().out.splitlines() == [
        "tiny  MLflow cannot be reached (Connection refused); waiting for it, at most 30 s",
        "tiny  MLflow does not answer yet; waiting 30 s more",
    ]


def test_pauses_grow_to_the_longest():
    assert list(islice(Patience(1, 30).list_pauses(), 7)) == [1, 2, 4, 8, 16, 30, 30]
