"""The one URL parser: what it takes it takes in one reading. What it refuses is in the SSRF battery."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerd.capabilities.urls import MAX_URL_CHARACTERS, Target, UrlError, parse_url


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("https://api.example.com", "https", "api.example.com", 443, "/"),
        ("http://api.example.com", "http", "api.example.com", 80, "/"),
        ("HTTPS://API.Example.COM/A", "https", "api.example.com", 443, "/A"),
        ("https://a.b:8443/p?q=1&r=%2F#f?g", "https", "a.b", 8443, "/p?q=1&r=%2F"),
        ("https://a.b?q", "https", "a.b", 443, "/?q"),
        ("https://a.b/p?", "https", "a.b", 443, "/p"),
        ("https://a.b?", "https", "a.b", 443, "/"),
        ("https://a.b/p??", "https", "a.b", 443, "/p??"),
        ("https://a.b#f", "https", "a.b", 443, "/"),
        ("https://a.b//c/../d/./e", "https", "a.b", 443, "//c/../d/./e"),
        ("https://a.b/ü?ö=<x>", "https", "a.b", 443, "/%C3%BC?%C3%B6=%3Cx%3E"),
        ("https://a.b/a@b:c", "https", "a.b", 443, "/a@b:c"),
        ("https://a.b/?next=https://c.d/@e", "https", "a.b", 443, "/?next=https://c.d/@e"),
        ("https://bücher.example/", "https", "xn--bcher-kva.example", 443, "/"),
        ("https://8.8.8.8:443/", "https", "8.8.8.8", 443, "/"),
        ("https://[2606:4700:0:0::1]/", "https", "2606:4700::1", 443, "/"),
        ("https://[2606:4700::1]:444/", "https", "2606:4700::1", 444, "/"),
        ("https://localhost/", "https", "localhost", 443, "/"),
    ],
)
def test_url__in_its_plain_form__is_read(url: str, scheme: str, host: str, port: int, path: str) -> None:
    assert parse_url(url) == Target(scheme=scheme, host=host, port=port, path=path)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://a.b:443/", "a.b"),
        ("https://a.b:80/", "a.b:80"),
        ("http://a.b:80/", "a.b"),
        ("https://[2606:4700::1]:444/", "[2606:4700::1]:444"),
    ],
)
def test_authority__leaves_the_usual_port_out(url: str, authority: str) -> None:
    assert parse_url(url).authority == authority


@pytest.mark.parametrize("length", [MAX_URL_CHARACTERS, MAX_URL_CHARACTERS + 1])
def test_length__has_a_bound(length: int) -> None:
    url = "https://a.b/".ljust(length, "x")
    if length > MAX_URL_CHARACTERS:
        with pytest.raises(UrlError):
            parse_url(url)
    else:
        assert len(parse_url(url).path) == length - len("https://a.b")


@given(st.text(max_size=40))
def test_anything__is_refused_or_has_one_reading(text: str) -> None:
    for url in (text, f"https://{text}", f"https://a.example{text}", f"https://{text}@a.example/"):
        try:
            target = parse_url(url)
        except UrlError:
            continue
        again = parse_url(f"{target.scheme}://{target.authority}{target.path}")
        assert again == target
        assert target.host.isascii()
        assert target.path.startswith("/")
        assert not set(target.host + target.path) & set("\r\n\t \\\0#")
