"""Image URLs: what is fetched, and that nothing else is ever connected to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.media.addresses import is_public
from server.media.fetch import NOT_FETCHED, Fetcher, FetchFailed, PublicNetwork, SystemResolver, check_url
from server.media.files import MediaError
from server.settings.groups import MediaSettings
from server.watch.trace_context import outgoing
from tests.server.scripted import png
from tests.server.web import ALLOWED, ALSO_PUBLIC, GOOD, PUBLIC, SETTINGS, Answer, World, ok, redirect


async def fetched(fetcher: Fetcher, url: str) -> bytes:
    return (await fetcher.fetch_all([url]))[url]


async def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(FetchFailed) as failure:
        await fetcher.fetch_all([url])
    assert failure.value.url == url
    assert len(str(failure.value)) < 200
    return str(failure.value)


# what works --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        GOOD,
        "HTTPS://Images.Example.COM/a.png",
        "https://images.example.com:443/a.png",
        "https://images.example.com/a.png#part",
        "https://a.cdn.example.org/a.png",
    ],
)
async def test_an_image_of_an_allowed_domain_is_fetched(world: World, url: str) -> None:
    async with world.fetcher() as fetcher:
        assert await fetched(fetcher, url) == png()
    assert world.network.connected == [(PUBLIC, 443)]


async def test_path_and_query_arrive_as_they_were_written(world: World) -> None:
    target = "/x%20y;v=1/@b?size=big&sig=a%2Fb+c="
    world.pages[target] = lambda _: ok(b"data")
    async with world.fetcher() as fetcher:
        assert await fetched(fetcher, "https://images.example.com" + target) == b"data"


async def test_a_request_says_who_it_is_and_brings_nothing_of_ours(world: World, monkeypatch: Any) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    heads: list[str] = []

    def page(head: str) -> bytes:
        heads.append(head.lower())
        return ok(b"x", set_cookie="a=b; Path=/")

    world.pages["/a.png"] = page
    async with world.fetcher() as fetcher:
        for _ in range(2):
            await fetched(fetcher, GOOD)
    for head in heads:
        assert "host: images.example.com\r\n" in head
        assert "accept-encoding: identity" in head
        assert not any(name in head for name in ("cookie", "authorization", "referer", "proxy"))


async def test_the_trace_of_the_request_is_handed_on(world: World) -> None:
    heads: list[str] = []
    world.pages["/a.png"] = lambda head: heads.append(head) or ok(b"x")  # type: ignore[func-returns-value]
    token = outgoing.set({"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
    async with world.fetcher() as fetcher:
        await fetched(fetcher, GOOD)
        outgoing.reset(token)
        await fetched(fetcher, GOOD)
    assert [f"traceparent: 00-{'1' * 32}-{'2' * 16}-01\r\n" in head for head in heads] == [True, False]


async def test_three_redirects_are_followed_and_each_is_resolved_anew(world: World) -> None:
    world.pages |= {
        "/1": lambda _: redirect("/2", 301),
        "/2": lambda _: redirect("https://a.cdn.example.org/3", 307),
        "/3": lambda _: redirect("//images.example.com/a.png", 308),
    }
    async with world.fetcher() as fetcher:
        assert await fetched(fetcher, "https://images.example.com/1") == png()
    assert world.asked == ["images.example.com", "images.example.com", "a.cdn.example.org", "images.example.com"]


async def test_http_where_it_is_allowed(world: World) -> None:
    async with world.fetcher(MediaSettings(allowed_domains=ALLOWED, allow_http=True)) as fetcher:
        assert await fetched(fetcher, "http://images.example.com/a.png") == png()
    assert world.network.connected == [(PUBLIC, 80)]


async def test_the_second_address_is_tried_where_the_first_does_not_answer(world: World) -> None:
    world.names["images.example.com"] = [ALSO_PUBLIC, PUBLIC]
    async with world.fetcher() as fetcher:
        world.network._ports[ALSO_PUBLIC] = 1  # nothing listens there
        assert await fetched(fetcher, GOOD) == png()
    assert [host for host, _ in world.network.connected] == [ALSO_PUBLIC, PUBLIC]


async def test_the_images_of_a_request_are_fetched_side_by_side_and_each_url_once(world: World) -> None:
    urls = [f"https://images.example.com/{i}" for i in range(4)]
    together = asyncio.Barrier(4)

    async def page(head: str) -> bytes:
        await together.wait()
        return ok(head.split(" ")[1].encode())

    world.pages |= {f"/{i}": page for i in range(4)}
    async with world.fetcher() as fetcher:
        assert await fetcher.fetch_all([*urls, *urls]) == {url: url[-2:].encode() for url in urls}


@pytest.mark.parametrize(("fetches", "fetches_per_host"), [(2, 8), (8, 2)])
async def test_only_so_many_fetches_run_at_once(world: World, fetches: int, fetches_per_host: int) -> None:
    settings = MediaSettings(allowed_domains=ALLOWED, fetches=fetches, fetches_per_host=fetches_per_host)
    most = running = 0

    async def page(_: str) -> bytes:
        nonlocal most, running
        running += 1
        most = max(most, running)
        for _turn in range(20):
            await asyncio.sleep(0)
        running -= 1
        return ok(b"x")

    world.pages |= {f"/{i}": page for i in range(8)}
    async with world.fetcher(settings) as fetcher:
        await fetcher.fetch_all([f"https://images.example.com/{i}" for i in range(8)])
        assert not fetcher._hosts
    assert 1 <= most <= 2


async def test_a_cancelled_fetch_closes_its_connection(world: World) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def page(_: str) -> bytes:
        arrived.set()
        await gone.wait()
        return b""

    world.pages["/a.png"] = page
    async with world.fetcher() as fetcher:
        task = asyncio.create_task(fetcher.fetch_all([GOOD]))
        await arrived.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not fetcher._client.connections
        gone.set()


# hostile URLs ------------------------------------------------------------------------------------------------------

HOSTILE = {
    "loopback": "https://127.0.0.1/",
    "loopback by name": "https://localhost/",
    "loopback by a longer name": "https://localhost.localdomain/",
    "loopback, short": "https://127.1/",
    "loopback, decimal": "https://2130706433/",
    "loopback, hex": "https://0x7f000001/",
    "loopback, hex parts": "https://0x7f.0x0.0x0.0x1/",
    "loopback, octal": "https://0177.0.0.1/",
    "loopback, padded": "https://127.000.000.001/",
    "loopback, percent": "https://%31%32%37.0.0.1/",
    "loopback, full-width digits": "https://１２７.０.０.１/",
    "loopback, circled digits": "https://①②⑦.⓪.⓪.①/",
    "loopback, ideographic dots": "https://127。0。0。1/",
    "unspecified": "https://0.0.0.0/",
    "zero": "https://0/",
    "private": "https://10.0.0.1/",
    "private 172": "https://172.16.0.1/",
    "private 192": "https://192.168.1.1/",
    "link-local metadata": "https://169.254.169.254/latest/meta-data/",
    "metadata by name": "https://metadata.google.internal/computeMetadata/v1/",
    "carrier-grade": "https://100.64.0.1/",
    "v6 loopback": "https://[::1]/",
    "v6 unspecified": "https://[::]/",
    "v6 mapped": "https://[::ffff:127.0.0.1]/",
    "v6 mapped, hex": "https://[::ffff:7f00:1]/",
    "v6 compatible": "https://[::127.0.0.1]/",
    "v6 nat64": "https://[64:ff9b::7f00:1]/",
    "v6 unique local": "https://[fd00:ec2::254]/",
    "v6 link-local with scope": "https://[fe80::1%25eth0]/",
    "v6 public": f"https://[{ALSO_PUBLIC}]/",
    "public address": f"https://{PUBLIC}/a.png",
    "user name": "https://images.example.com@127.0.0.1/",
    "user name before the right host": "https://127.0.0.1@images.example.com/a.png",
    "password": "https://user:pass@images.example.com/a.png",
    "empty user": "https://@images.example.com/a.png",
    "backslash": "https://127.0.0.1\\@images.example.com/a.png",
    "backslash after the host": "https://images.example.com\\.127.0.0.1/a.png",
    "backslashes": "https:\\\\127.0.0.1\\",
    "trailing dot": "https://images.example.com./a.png",
    "dots alone": "https://../",
    "no host": "https:///a.png",
    "no slashes": "https:images.example.com/a.png",
    "one slash": "https:/images.example.com/a.png",
    "other port": "https://images.example.com:8443/a.png",
    "ssh port": "https://images.example.com:22/",
    "port of http": "https://images.example.com:80/a.png",
    "port with a sign": "https://images.example.com:+443/a.png",
    "port with a zero": "https://images.example.com:0443/a.png",
    "empty port": "https://images.example.com:/a.png",
    "two ports": "https://images.example.com:443:80/a.png",
    "http where it is off": "http://images.example.com/a.png",
    "other domain": "https://example.com/a.png",
    "domain as a suffix": "https://evilimages.example.com/a.png",
    "domain as a prefix": "https://images.example.com.evil.org/a.png",
    "the wildcard's own domain": "https://cdn.example.org/a.png",
    "domain in the path": "https://evil.org/images.example.com",
    "domain in the fragment": "https://evil.org#@images.example.com/",
    "domain in the query": "https://evil.org?@images.example.com/",
    "percent in the host": "https://images%2eexample.com/a.png",
    "IDN": "https://ımages.example.com/a.png",
    "unicode dot": "https://images．example.com/a.png",
    "soft hyphen": "https://images\u00ad.example.com/a.png",
    "zero-width space": "https://images\u200b.example.com/a.png",
    "underscore": "https://im_ages.example.com/a.png",
    "newline": "https://images.example.com/a.png\r\nHost: 127.0.0.1",
    "newline in the host": "https://images.exa\nmple.com/a.png",
    "tab": "https://images.example.com/\ta.png",
    "space": "https://images.example.com/a b.png",
    "space before the host": "https:// images.example.com/a.png",
    "null": "https://images.example.com/\0a.png",
    "non-ASCII path": "https://images.example.com/é.png",
    "quotes": 'https://images.example.com/"a".png',
    "too long": "https://images.example.com/" + "a" * 5000,
    "long host": "https://" + "a." * 200 + "example.com/",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_url_is_refused_and_nothing_is_asked_or_connected(world: World, name: str) -> None:
    async with world.fetcher() as fetcher:
        await refusal(fetcher, HOSTILE[name])
    assert (world.asked, world.network.connected, world.canary_hits) == ([], [], 0)


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_redirect_to_a_hostile_url_is_refused(world: World, name: str) -> None:
    """Where joining it with its base makes it relative, it can only lead to the host that sent it."""
    location = HOSTILE[name].encode("utf-8").decode("latin-1").replace("\r", "").replace("\n", "").replace("\0", "")
    world.pages["/1"] = lambda _: (
        b"HTTP/1.1 302 Moved\r\nlocation: " + location.encode("latin-1") + b"\r\ncontent-length: 0\r\n\r\n"
    )
    async with world.fetcher() as fetcher:
        with contextlib.suppress(FetchFailed):
            await fetched(fetcher, "https://images.example.com/1")
    assert {host for host, _ in world.network.connected} <= {PUBLIC}
    assert world.canary_hits == 0
    assert set(world.asked) <= {"images.example.com"}


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd", "FILE:///etc/passwd", "ftp://images.example.com/a.png", "gopher://127.0.0.1/",
        "data:image/png;base64,AAAA", "javascript:alert(1)", "http://images.example.com/a.png", "unix:/run/x.sock",
        "//127.0.0.1/", "///127.0.0.1/", "https://images.example.com:1/", "https://[::1", "https://[bad]/",
    ],
)  # fmt: skip
async def test_a_redirect_to_another_scheme_port_or_host_is_refused(world: World, location: str) -> None:
    world.pages["/1"] = lambda _: redirect(location)
    async with world.fetcher() as fetcher:
        await refusal(fetcher, "https://images.example.com/1")
    assert (world.served, world.canary_hits) == (["/1"], 0) or location.startswith("///")
    assert world.canary_hits == 0


async def test_a_fourth_redirect_is_refused_and_so_is_a_loop(world: World) -> None:
    world.pages |= {f"/{i}": lambda _, i=i: redirect(f"/{i + 1}") for i in range(4)}  # type: ignore[misc]
    world.pages["/loop"] = lambda _: redirect("/loop")
    async with world.fetcher() as fetcher:
        assert "more than 3 times" in await refusal(fetcher, "https://images.example.com/0")
        assert len(world.served) == 4
        await refusal(fetcher, "https://images.example.com/loop")
        assert len(world.served) == 8


# hostile name servers ----------------------------------------------------------------------------------------------

NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255",
    "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1",
    "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:93.184.215.14", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::93.184.215.14", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1", "2002:c0a8:101::", "3fff::1", "5f00::1", "fc00::1",
    "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
    "2606:2800:21f:cb07:0:5efe:7f00:1", "2606:2800:21f:cb07:200:5efe:127.0.0.1", f"{ALSO_PUBLIC}%1",
    "", "nonsense", "0x7f.1", "2130706433", "127.1", "/run/socket",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_name_that_leads_to_such_an_address_is_never_connected_to(world: World, address: str) -> None:
    assert not is_public(address)
    async with world.fetcher() as fetcher:
        for answer in ([address], [PUBLIC, address], [address, PUBLIC]):
            world.names["images.example.com"] = answer
            assert await refusal(fetcher, GOOD) == NOT_FETCHED
    assert (world.network.connected, world.canary_hits) == ([], 0)


@pytest.mark.parametrize("address", [PUBLIC, ALSO_PUBLIC, "1.1.1.1", "223.255.255.255", "2a00:1450:4001:800::200e"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4).filter(lambda a: not a.is_global or a.is_multicast))
def test_no_address_that_python_calls_private_is_public(address: Any) -> None:
    assert not is_public(str(address))


async def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked(world: World) -> None:
    """Every second answer is loopback. There is one look-up per connection, so the bad ones are refused."""
    flip = [[PUBLIC], ["127.0.0.1"]] * 10
    world.names["rebinding.example.com"] = iter(flip)
    async with world.fetcher() as fetcher:
        for attempt in range(20):
            url = "https://rebinding.example.com/a.png"
            if attempt % 2:
                assert await refusal(fetcher, url) == NOT_FETCHED
            else:
                assert await fetched(fetcher, url) == png()
    assert len(world.asked) == 20
    assert {host for host, _ in world.network.connected} == {PUBLIC}
    assert world.canary_hits == 0


async def test_a_redirect_to_a_name_that_is_loopback_by_then_is_refused(world: World) -> None:
    world.names["rebinding.example.com"] = iter([[PUBLIC], ["127.0.0.1"]])
    world.pages["/1"] = lambda _: redirect("https://rebinding.example.com/a.png")
    async with world.fetcher() as fetcher:
        assert await refusal(fetcher, "https://rebinding.example.com/1") == NOT_FETCHED
    assert world.canary_hits == 0


async def test_a_certificate_of_another_name_is_refused(world: World) -> None:
    async with world.fetcher(names=["evil.example.com"]) as fetcher:
        assert await refusal(fetcher, GOOD) == NOT_FETCHED
    assert world.served == []


async def test_refused_timed_out_not_public_unknown_and_missing_read_the_same(world: World) -> None:
    hang = asyncio.Event()

    async def never(_: str) -> bytes:
        await hang.wait()
        return b""

    world.pages |= {"/hang": never, "/cut": lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"}
    world.pages |= {"/garbage": lambda _: b"SSH-2.0-OpenSSH\r\n\r\n", "/404": lambda _: b"HTTP/1.1 404 No\r\n\r\n"}
    world.names |= {"no.cdn.example.org": None, "in.cdn.example.org": ["10.0.0.1"]}
    told: set[str] = set()
    async with world.fetcher(MediaSettings(allowed_domains=ALLOWED, seconds=0.5)) as fetcher:
        for url in ("images.example.com/hang", "images.example.com/cut", "images.example.com/garbage",
                    "images.example.com/404", "no.cdn.example.org/", "in.cdn.example.org/"):  # fmt: skip
            told.add(await refusal(fetcher, "https://" + url))
        world.network._ports[PUBLIC] = 1
        told.add(await refusal(fetcher, GOOD))
        hang.set()
    assert told == {NOT_FETCHED}


# hostile servers ---------------------------------------------------------------------------------------------------


async def endless(_: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3_000_000)


ANSWERS: Mapping[str, tuple[Answer, str]] = {
    "larger than it says": (lambda _: b"HTTP/1.1 200 OK\r\n\r\n" + bytes(200_000), "100000 bytes"),
    "says it is larger": (lambda _: ok(bytes(200_000)), "100000 bytes"),
    "without end": (endless, "100000 bytes"),
    "chunked without end": (
        lambda _: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1000\r\n" + bytes(4096) + b"\r\n" * 99,
        "",
    ),
    "chunk of 2**63": (
        lambda _: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n" + bytes(200_000),
        "",
    ),
    "compressed": (lambda _: ok(b"x", content_encoding="gzip"), "compressed"),
    "compressed twice": (lambda _: ok(b"x", content_encoding="identity, br"), "compressed"),
    "partial": (lambda _: b"HTTP/1.1 206 Partial Content\r\ncontent-length: 1\r\n\r\nx", NOT_FETCHED),
    "no content": (lambda _: b"HTTP/1.1 204 No Content\r\n\r\n", NOT_FETCHED),
    "error with an image": (lambda _: ok(png()).replace(b"200 OK", b"500 Oh"), NOT_FETCHED),
    "redirect without a place": (lambda _: b"HTTP/1.1 302 Moved\r\ncontent-length: 0\r\n\r\n", NOT_FETCHED),
    "huge headers": (lambda _: ok(b"x", x_a="a" * 300_000), NOT_FETCHED),
    "many headers": (lambda _: b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000 + b"\r\n", NOT_FETCHED),
    "no HTTP": (lambda _: b"\x16\x03\x01\x02\x00" * 100, NOT_FETCHED),
    "two lengths": (lambda _: ok(b"x", Content_Length="2"), NOT_FETCHED),
    "switching protocols": (lambda _: b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\n\r\n", NOT_FETCHED),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_hostile_answer_is_refused(world: World, name: str) -> None:
    page, message = ANSWERS[name]
    world.pages["/a.png"] = page
    async with world.fetcher() as fetcher:
        assert message in await refusal(fetcher, GOOD)
        world.pages["/a.png"] = lambda _: ok(png())
        assert await fetched(fetcher, GOOD) == png()


async def test_an_answer_that_trickles_ends_with_the_time_limit(world: World) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)

    world._serve = trickle  # type: ignore[method-assign]
    async with world.fetcher(MediaSettings(allowed_domains=ALLOWED, seconds=0.3)) as fetcher:
        assert await refusal(fetcher, GOOD) == NOT_FETCHED


async def test_the_images_of_a_request_share_a_limit(world: World) -> None:
    world.pages |= {f"/{i}": lambda _: ok(bytes(400)) for i in range(3)}
    urls = [f"https://images.example.com/{i}" for i in range(3)]
    async with world.fetcher(max_total=1000) as fetcher:
        assert len(await fetcher.fetch_all(urls[:2])) == 2
        with pytest.raises(FetchFailed, match="more than 1000 bytes"):
            await fetcher.fetch_all(urls)


async def test_a_failure_ends_the_other_fetches_of_the_request(world: World) -> None:
    arrived = asyncio.Event()
    ended = asyncio.Event()

    async def never(_: str) -> bytes:
        arrived.set()
        await ended.wait()
        return b""

    async def fail(_: str) -> bytes:
        await arrived.wait()
        return b"HTTP/1.1 404 No\r\n\r\n"

    world.pages |= {"/never": never, "/fail": fail}
    async with world.fetcher() as fetcher:
        with pytest.raises(FetchFailed) as failure:
            await fetcher.fetch_all(["https://images.example.com/never", "https://images.example.com/fail"])
        ended.set()
    assert failure.value.url.endswith("/fail")


# pieces ------------------------------------------------------------------------------------------------------------


async def test_a_socket_file_is_no_network() -> None:
    async def resolve(_: str, __: int) -> list[str]:
        return []

    network = PublicNetwork(resolve, httpcore.AnyIOBackend())
    for connecting in (network.connect_unix_socket("/run/x"), network.connect_tcp("a.b", 443)):
        with pytest.raises(httpcore.ConnectError):
            await connecting


async def test_the_systems_resolver() -> None:
    resolver = SystemResolver(1)
    try:
        assert set(await resolver("localhost", 443)) <= {"127.0.0.1", "::1"}
        with pytest.raises(OSError, match=r"."):
            await resolver("nowhere.invalid", 443)
    finally:
        resolver.close()


@pytest.mark.parametrize(
    "domain", ["*", "*.com", "", "UPPER.com", "a.com.", "127.0.0.1", "*.*.com", "a..b", "x", "é.fr"]
)
def test_a_domain_that_could_not_be_meant_is_no_setting(domain: str) -> None:
    with pytest.raises(ValueError, match="allowed_domains"):
        MediaSettings(allowed_domains=(domain,))


@given(
    st.text(max_size=60), st.sampled_from(["", "https://", "https://images.example.com", "https://a.cdn.example.org/"])
)
def test_any_string_is_refused_or_leads_to_an_allowed_name(text: str, prefix: str) -> None:
    try:
        target = check_url(prefix + text, SETTINGS)
    except MediaError:
        return
    assert target.host == "images.example.com" or target.host.endswith(".cdn.example.org")
    assert target.scheme == "https"
    assert target.path.isascii()
    assert target.path.isprintable()
