import pytest
from starlette.datastructures import Headers

from serving.errors import ForeignPageError
from serving.http.origins import PageCheck


def is_allowed(allowed_origins=(), allowed_hosts=(), has_keys=False, **fields):
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    try:
        PageCheck(allowed_origins, allowed_hosts, has_keys).check(Headers(raw=headers))
    except ForeignPageError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1:3000", "darkroom.example.org", "serving.team.svc.cluster.local:3000"])
def test_what_is_no_page_may_call_under_any_name(host):
    assert is_allowed(host=host)
    assert is_allowed()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("[::1]:3000", "http://[::1]:3000"),
        ("LOCALHOST:3000", "http://localhost:3000"),
        ("photos.localhost", "http://photos.localhost"),
        ("192.168.1.5", "https://192.168.1.5"),
        ("workstation", "http://workstation:80"),
    ],
)
def test_the_services_own_page_may_call(host, origin):
    assert is_allowed(host=host, origin=origin)
    assert is_allowed(host=host, origin=origin, sec_fetch_site="same-origin")


@pytest.mark.parametrize("given", ["https://a.example", "HTTPS://A.example:443"])
@pytest.mark.parametrize("origin", ["https://a.example", "https://a.example:443"])
def test_an_allowed_origin_is_known_however_it_is_written(given, origin):
    assert is_allowed([given], host="127.0.0.1:3000", origin=origin)
    assert not is_allowed([given], host="127.0.0.1:3000", origin="http://a.example")
    assert not is_allowed([given], host="127.0.0.1:3000", origin="https://a.example:444")


def test_a_host_with_a_user_is_no_name_of_this_service():
    assert not is_allowed(host="elsewhere.example@localhost", origin="http://localhost")


@pytest.mark.parametrize(
    "fields",
    [
        {"origin": "https://elsewhere.example"},
        {"origin": "http://127.0.0.1:3001"},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:3000.elsewhere.example"},
        {"origin": "http://127.0.0.1:port"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "http://127.0.0.1:3000", "sec_fetch_site": "cross-site"},
    ],
)
def test_pages_of_other_origins_may_not(fields):
    for has_keys in (False, True):
        assert not is_allowed(host="127.0.0.1:3000", has_keys=has_keys, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        [("origin", "http://127.0.0.1:3000"), ("origin", "https://elsewhere.example")],
        [("origin", "https://shop.example"), ("origin", "https://elsewhere.example")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-origin, cross-site")],
        [("sec-fetch-site", "anywhere")],
    ],
)
def test_what_states_several_origins_is_no_page_of_ours(fields):
    raw = [(name.encode(), value.encode()) for name, value in [("host", "127.0.0.1:3000"), *fields]]
    with pytest.raises(ForeignPageError):
        PageCheck(["https://shop.example"], [], has_keys=False).check(Headers(raw=raw))


def test_pages_of_allowed_origins_may():
    fields = {"host": "127.0.0.1:3000", "sec_fetch_site": "cross-site"}
    assert is_allowed(["https://Shop.example"], origin="https://shop.example", **fields)
    assert not is_allowed(["https://shop.example"], origin="https://shop.example.org", **fields)
    assert not is_allowed(["https://shop.example"], origin="http://shop.example", **fields)


@pytest.mark.parametrize(
    "host", ["rebound.example:3000", "127.0.0.1.rebound.example", "rebound.example.", "localhost."]
)
def test_a_name_that_was_made_to_resolve_here_is_not_ours(host):
    page = {"host": host, "origin": f"http://{host}", "sec_fetch_site": "same-origin"}
    assert is_allowed(**page) == (host == "localhost.")
    assert is_allowed(**page, has_keys=True), "the page has no key"


def test_a_name_that_we_were_told_is_ours():
    page = {"host": "photos.example.org:8443", "origin": "https://photos.example.org:8443"}
    assert not is_allowed(**page)
    assert is_allowed(allowed_hosts=["Photos.example.org"], **page)
    assert not is_allowed(allowed_hosts=["example.org"], **page)


def test_behind_a_proxy_that_changes_the_host_the_browsers_word_counts():
    assert is_allowed(host="darkroom:3000", origin="https://photos.example.org", sec_fetch_site="same-origin")
    assert not is_allowed(host="darkroom:3000", origin="https://photos.example.org", sec_fetch_site="cross-site")
