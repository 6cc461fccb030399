"""Pictures from addresses: nothing inside of the server's own network is ever reached. No test leaves this machine."""

from __future__ import annotations

import asyncio

import pytest
from serve_client import ask, make_assistant, png, running

from pumice.serve.errors import ApiError
from pumice.serve.fetch import Fetcher, is_public, parse
from pumice.serve.settings import Remote

PUBLIC = "93.184.216.34"
INSIDE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::1", "2001:db8::1", "2001:0:7f00:1::", "fec0::1",
    "64:ff9b:1::1",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside_are_refused(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_not(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://a/b", "gopher://a", "//a/b", "http://", "http:///x", "http://user@a/", "http://a:b@c/",
        "http://a:22/", "https://a:80/", "http://a:99999/", "http://[::1", "http://a b/", "http://a/\r\nhost: b",
        "unix:/run/x", "HTTP+unix://x", "", "javascript:1", "http://a\x00b/",
    ],
)  # fmt: skip
def test_addresses_that_are_not_fetched(url):
    with pytest.raises(ApiError) as caught:
        parse(url, "here")
    assert (caught.value.status, caught.value.code) == (400, "remote_media_refused")


def fetcher(names: dict[str, list[str]], serve=None, **limits) -> tuple[Fetcher, list[tuple[str, int]]]:
    """A fetcher whose names are looked up in a table, and whose connections go to ``serve`` and are noted."""
    reached: list[tuple[str, int]] = []

    async def resolve(host: str, port: int) -> list[str]:
        found = names.get(host, [])
        return [found.pop(0)] if len(found) > 1 else list(found)  # another one at the second look

    async def connect(ip: str, port: int, host: str, tls: bool):
        reached.append((ip, port))
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return await asyncio.open_connection(*server.sockets[0].getsockname()[:2])

    return Fetcher(Remote(allowed=True, **{"seconds": 2.0, **limits}), resolve, connect), reached


def hop(url: str, names, serve=None, **limits):
    table = {name: found if isinstance(found, list) else [found] for name, found in names.items()}
    made, reached = fetcher(table, serve, **limits)
    return asyncio.run(made.fetch(url, "here")), reached


def answering(*answers: bytes):
    """A server that gives these answers to one connection after the other."""
    left = iter(answers)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(next(left))
        await writer.drain()
        writer.close()

    return serve


def found(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def moved(where: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nlocation: {where}\r\ncontent-length: 0\r\n\r\n".encode()


def test_a_picture_is_fetched_from_the_address_that_was_checked():
    body, reached = hop("http://a.example/x.png?y", {"a.example": [PUBLIC, "127.0.0.1"]}, answering(found(b"abc")))
    assert body == b"abc"
    assert reached == [(PUBLIC, 80)]


@pytest.mark.parametrize("inside", INSIDE)
def test_names_that_lead_inside_are_never_connected_to(inside):
    for names in ({"a.example": inside}, {"b.example": PUBLIC, "a.example": inside}):
        table = {name: [address] for name, address in names.items()}
        made, reached = fetcher(table, answering(moved("http://a.example/"), found(b"secret")))
        with pytest.raises(ApiError, match="isn't on the public internet"):
            asyncio.run(made.fetch(f"http://{next(iter(names))}/", "here"))
        assert all(ip == PUBLIC for ip, _ in reached)


def test_one_bad_address_among_good_ones_is_enough():
    async def resolve(host, port):
        return [PUBLIC, "10.0.0.1"]

    async def connect(*_):
        raise AssertionError

    with pytest.raises(ApiError, match="isn't on the public"):
        asyncio.run(Fetcher(Remote(allowed=True), resolve, connect).fetch("http://a/", "here"))


def test_redirects_are_followed_checked_and_counted():
    names = {"a.example": PUBLIC, "b.example": "8.8.8.8"}
    body, reached = hop("http://a.example/", names, answering(moved("https://b.example/x"), found(b"abc")))
    assert body == b"abc"
    assert reached == [(PUBLIC, 80), ("8.8.8.8", 443)]
    body, _ = hop("http://a.example/1", names, answering(moved("/2"), found(b"abc")))
    assert body == b"abc"
    places = {"file:///etc/passwd": "expected an http", "http://a.example:22/": "port 22", "//[": "not a well-formed"}
    for where, words in places.items():
        with pytest.raises(ApiError, match=words):
            hop("http://a.example/", names, answering(moved(where)))
    with pytest.raises(ApiError, match="more than 3 redirects"):
        hop("http://a.example/", names, answering(*[moved("/again")] * 4))


def test_size_time_and_status_are_bounded():
    names = {"a.example": PUBLIC}
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000)
    with pytest.raises(ApiError, match="more than 1,000 bytes"):
        hop("http://a.example/", names, answering(endless), max_bytes=1000)
    with pytest.raises(ApiError, match="couldn't be fetched"):
        hop("http://a.example/", names, answering(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n"))
    with pytest.raises(ApiError, match="couldn't be fetched"):
        hop("http://a.example/", names, answering(b"220 ftp\r\n\r\n"))
    with pytest.raises(ApiError, match="couldn't be fetched"):
        hop("http://a.example/", names, answering(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"))

    async def trickle(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(100):
            writer.write(b"x-%d: 1\r\n" % number)
            await asyncio.sleep(0.1)

    with pytest.raises(ApiError, match=r"more than 0\.5 seconds"):
        hop("http://a.example/", names, trickle, seconds=0.5)


def test_only_the_hosts_that_are_named():
    names = {"a.example": PUBLIC, "b.example": PUBLIC}
    assert hop("http://A.example./", names, answering(found(b"x")), hosts=frozenset({"a.example"}))[0] == b"x"
    with pytest.raises(ApiError, match="isn't one of those"):
        hop("http://b.example/", names, answering(found(b"x")), hosts=frozenset({"a.example"}))
    with pytest.raises(ApiError, match="isn't one of those"):
        hop("http://a.example/", names, answering(moved("http://b.example/")), hosts=frozenset({"a.example"}))


def test_a_fetched_picture_is_answered_about(tokenizer):
    assistant = make_assistant(tokenizer)
    made, reached = fetcher({"a.example": [PUBLIC]}, answering(found(png(1))))
    with running(assistant, fetcher=made) as served:
        part = {"type": "image_url", "image_url": {"url": "http://a.example/x.png"}}
        answer = served.client().chat.completions.create(model="tiny", messages=ask("What?", part), max_tokens=8)
    assert answer.choices[0].message.content == assistant.ask(png(1), "What?", max_tokens=8).text
    assert reached == [(PUBLIC, 80)]
