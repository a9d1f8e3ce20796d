"""Send hostile requests: each gets a response, and the server still serves the next one."""

import io
import json
import socket
import struct
import time
import zlib

import pytest
from PIL import Image
from serving import LIMITS, change_limits, encode_png, noise_image, serving, wait_until

from imagen.errors import UserError
from imagen.pictures import jpeg
from imagen.serve.access import Access, read_keys
from imagen.serve.config import ServeConfig


@pytest.fixture(scope="module")
def running():
    with serving() as server:
        yield server


JSON = {"content-type": "application/json"}


@pytest.fixture
def http(running):
    with running.client() as client:
        yield client
        assert client.post("/v1/images/generations", json={"prompt": "cat", "size": "16x16"}).status_code == 200
    wait_until(lambda: running.service.engines[0].load() == (0, 0))


def error_message(response, status: int) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "Traceback" not in response.text
    return error["message"]


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"prompt": "x" * 101}, 422, "prompt has 101 characters; the limit is 100"),
        ({"prompt": "x", "n": 5}, 422, "n is 5; the limit of a request is 4"),
        ({"prompt": "x", "n": 0}, 422, "n is 0: input should be greater than or equal to 1"),
        ({"prompt": "x", "steps": 61}, 422, "steps is 61; the limit is 60"),
        ({"prompt": "x", "steps": [3, 10**9]}, 422, "the limit is 60"),
        ({"prompt": "x", "steps": 0}, 422, "steps is 0; it must be a whole number, 1 or more"),
        ({"prompt": "x", "size": "8192x8192"}, 413, "sides must be 1 to 256"),
        ({"prompt": "x", "size": "256x256"}, 413, "the limit is 16,384"),
        ({"prompt": "x", "size": "33x32"}, 422, "nearest"),
        ({"prompt": "x", "size": "../../etc"}, 422, "it must be WIDTHxHEIGHT"),
        ({"prompt": "x", "size": "9e9x1"}, 422, "it must be WIDTHxHEIGHT"),
        ({"prompt": "x", "guidance": 1e300}, 422, "guidance"),
        ({"prompt": "x", "seed": -1}, 422, "seed is -1"),
        ({"prompt": "x", "seed": 2**63 - 1, "n": 2}, 422, "seed is"),
        ({"prompt": "x", "seed": 10**400}, 422, "seed"),
        ({"prompt": "x", "sampler": "euler"}, 422, "unknown sampler 'euler'; choose ddim"),
        ({"prompt": "x", "lora": "../weights"}, 422, "lora is not an object"),
        ({"prompt": ["x"]}, 422, "prompt is ['x']"),
        ({"prompt": "a\0b"}, 422, "zero byte"),
        ({"prompt": "\ud800"}, 422, "not UTF-8"),
        ({"prompt": "x", "init": "%%%"}, 422, "init is not valid base64"),
        ({"prompt": "x", "mask": ""}, 422, "mask"),
        ({"prompt": "x", "strength": 0.5}, 422, "strength applies to an init image; give one"),
        ({"prompt": "x", "stages": 3}, 422, "choose 1 to 2"),
        ({"prompt": "x", "tile": 0}, 422, "tile is 0"),
        ({"prompt": "x", "stages": 0, "size": "16x16"}, 422, "stages is 0"),
        ({"prompt": "x", "scale": 2}, 422, "scale is the factor by which a start image is upscaled"),
        ({"prompt": "," * 4_000}, 422, "more than 4,000 parts"),
        ([], 422, ""),
        ("x", 422, ""),
    ],
)
def test_invalid_fields_are_rejected(http, body, status, expected):
    content = json.dumps(body).encode()
    assert expected in error_message(
        http.post("/api/generate", content=content, headers={"content-type": "application/json"}), status
    )


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 50_000, b'{"seed": ' + b"9" * 9_000]
)
def test_broken_json_is_rejected(http, content):
    response = http.post("/api/generate", content=content, headers=JSON)
    assert error_message(response, response.status_code) and response.status_code in (400, 422)


def test_json_with_very_many_fields_is_not_parsed(http):
    """Validation would create an error per field and block the server meanwhile."""
    body = b"{" + b",".join(b'"%d":0' % i for i in range(10_000)) + b"}"
    assert "parts" in error_message(http.post("/api/generate", content=body, headers=JSON), 422)
    few = {str(i): 0 for i in range(20)}
    assert "unknown field" in error_message(http.post("/v1/images/generations", json=few), 422)
    long = http.post("/api/generate", json={"x" * 1000: 1}).json()["error"]
    assert len(long["param"]) == 60


def test_html_in_prompts_is_shown_as_text(running, http):
    prompt = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    response = http.post("/api/generate", json={"prompt": prompt, "size": "16x16"})
    assert response.headers["content-type"] == "application/json"
    refused = http.post("/v1/images/generations", json={"prompt": "x", "size": "<b>"})
    assert (
        refused.headers["content-type"] == "application/json" and refused.headers["x-content-type-options"] == "nosniff"
    )
    policy = http.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy


# --- images ---


def edit_error(http, data: bytes, status: int) -> str:
    return error_message(http.post("/v1/images/edits", files={"image": data}, data={"prompt": "x"}), status)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def test_decompression_bombs_are_rejected(http):
    """Files of 100 kB that expand to gigabytes of pixels, text or colour profile."""
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**7)))
    assert "the limit is 90,000" in edit_error(http, header(60_000, 60_000) + pixels + chunk(b"IEND", b""), 413)
    zeros = zlib.compress(bytes(10**8))
    for kind, begin in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0")):
        began = time.monotonic()
        response = http.post(
            "/v1/images/edits",
            files={"image": header(32, 32) + chunk(kind, begin + zeros) + encode_png(noise_image())[33:]},
            data={"prompt": "x"},
        )
        assert response.status_code in (200, 422) and time.monotonic() - began < 30


def test_jpegs_with_many_scans_are_rejected(http):
    """Each scan decodes all pixels again, so 70 kB would take minutes."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "JPEG", progressive=True)
    good = file.getvalue()
    tables, end = good.rfind(b"\xff\xc4"), good.rfind(b"\xff\xd9")
    assert jpeg.scans(good) == 6
    bomb = good[:end] + good[tables:end] * 200 + good[end:]
    assert edit_error(http, bomb, 422) == "image is a JPEG of 206 scans; the limit is 100"
    assert jpeg.scans(good + bomb) == 6, "data after the end of the image does not count"
    response = http.post("/v1/images/edits", files={"image": good}, data={"prompt": "x"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + bytes(500),
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"GIF89a" + bytes(100),
        encode_png(noise_image())[:200],
        header(32, 32),
        b"\xff\xd8\xff\xe0" + bytes(300),
        b"RIFF\x00\x00\x00\x00WEBPVP8L" + bytes(50),
    ],
)
def test_invalid_images_are_rejected(http, data):
    assert "image cannot be read: " in edit_error(http, data, 422)


def test_invalid_forms_are_rejected(http):
    url, image = "/v1/images/edits", encode_png(noise_image())
    assert "send multipart/form-data" in error_message(http.post(url, data={"prompt": "x"}), 422)
    assert "0 images" in error_message(http.post(url, files={"mask": image}, data={"prompt": "x"}), 422)
    response = http.post(url, files=[("image", image), ("image", image)], data={"prompt": "x"})
    assert "2 images" in error_message(response, 422)
    response = http.post(url, files=[("image", ("../../../etc/passwd", image))], data={"prompt": "x"})
    assert response.status_code == 200, "the file name is ignored"
    assert "unknown file" in error_message(http.post(url, files={"evil": image}, data={"prompt": "x"}), 422)
    assert "unknown field" in error_message(http.post(url, files={"image": image}, data={"prompt": "x", "a": "b"}), 422)
    many = {f"f{i}": "x" for i in range(200)}
    assert error_message(http.post(url, files={"image": image}, data=many), 400)
    broken = http.post(url, content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"})
    assert broken.status_code in (400, 422)
    wrong = http.post(url, files={"image": image, "mask": encode_png(Image.new("RGB", (7, 99)))}, data={"prompt": "x"})
    assert wrong.status_code == 200, "a mask of another size is resized to the image"


# --- bodies, addresses, headers ---


def test_large_bodies_are_rejected(running, http):
    assert "too large; the limit is 200,000 bytes" in error_message(
        http.post("/api/generate", content=bytes(200_001)), 413
    )

    def pieces(head):
        yield head
        for _ in range(100):
            yield bytes(10_000)

    file = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'  # the beginning of a valid form
    for url, kind, head in (
        ("/api/generate", "application/json", b"{"),
        ("/api/upscale", "multipart/form-data; boundary=x", file),
    ):
        response = http.post(url, content=pieces(head), headers={"content-type": kind})
        assert "too large; the limit is 200,000 bytes" in error_message(response, 413)
    for wrong in ("-1", "1e3", "9" * 30):
        assert send_raw(running, f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {wrong}\r\n\r\n")[
            :12
        ] in (
            b"HTTP/1.1 400",
            b"HTTP/1.1 413",
        )


@pytest.mark.parametrize(
    "path",
    [
        "/page/..%2f..%2fapp.py",
        "/page/../app.py",
        "/page/%2e%2e/%2e%2e/config.py",
        "/page//etc/passwd",
        "/api/pictures/..%2f..%2fetc%2fpasswd",
        "/api/pictures/%00.png",
        "/api/jobs/' OR 1=1",
        "/.env",
        "/static/x",
    ],
)
def test_path_traversal_is_rejected(running, http, path):
    answer = send_raw(
        running, f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 404") and b"root:" not in answer and b"import" not in answer


def test_an_image_has_exactly_one_address(http):
    address = http.post("/api/generate", json={"size": "16x16"}).headers["location"]
    wait_until(lambda: http.get(address).json()["state"] == "done")
    url = http.get(address).json()["pictures"][0]["url"]
    assert http.get(url).headers["content-disposition"] == f'inline; filename="{url.rpartition("/")[2]}"'
    for other in (".html", ".png%22; filename=x.exe", ".%E2%98%83", ".png%0d%0aSet-Cookie: a=b", ""):
        assert error_message(http.get(url.removesuffix(".png") + other), 404)


def send_raw(running, text: str | bytes, seconds: float = 10.0) -> bytes:
    """Send raw bytes; return the response up to the end of the connection, or what arrived before a timeout."""
    port = int(running.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        sent = text.encode("latin-1") if isinstance(text, str) else text
        connection.sendall(sent)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer and b"Connection: close" not in (
                    text if isinstance(text, bytes) else text.encode()
                ):
                    break
        except (TimeoutError, ConnectionError):
            pass
        return answer


def test_floods_of_headers_are_rejected(running, http):
    flood = "".join(f"X-{i}: {'y' * 100}\r\n" for i in range(5_000))
    answer = send_raw(running, f"GET / HTTP/1.1\r\nHost: localhost\r\n{flood}\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    few = {f"X-{i}": "y" * 100 for i in range(200)}
    assert error_message(http.get("/healthz", headers=few), 431) == "the request has too many headers"
    for junk in (b"\0" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        answer = send_raw(running, junk)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_other_methods_are_rejected_and_upgrades_ignored(http):
    assert error_message(http.put("/api/generate", content=b"{}"), 405) == "this address does not support the method"
    assert error_message(http.request("QUIRK", "/api/generate"), 405)
    assert error_message(http.get("/nowhere"), 404) == "there is nothing at this address"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    assert http.get("/", headers=upgrade).status_code == 200, "the upgrade is ignored"


def test_requests_from_other_sites_are_rejected(http):
    body = {"prompt": "x", "size": "16x16"}
    evil = {"Origin": "http://evil.example"}
    assert "other sites" in error_message(http.post("/api/generate", json=body, headers=evil), 403)
    assert "other sites" in error_message(
        http.post("/api/generate", json=body, headers={"Sec-Fetch-Site": "cross-site"}), 403
    )
    assert "access-control-allow-origin" not in http.get("/v1/models", headers=evil).headers
    rebound = http.get("/api/about", headers={"Host": "evil.example"})
    assert "--hostname" in error_message(rebound, 421)
    own = {"Origin": str(http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert http.post("/api/generate", json=body, headers=own).status_code == 202
    simple = {"Content-Type": "text/plain"}
    assert http.post("/api/generate", content=b'{"prompt": "x"}', headers=simple).status_code == 422


def test_allowed_origins_and_host_names_are_configurable():
    friend = "https://friend.example"
    with serving(cors=(friend,), hostnames=("pictures.example",)) as server, server.client() as http:
        response = http.post("/api/generate", json={}, headers={"Origin": friend, "Sec-Fetch-Site": "cross-site"})
        assert response.status_code == 202 and response.headers["access-control-allow-origin"] == friend
        asked = {"Origin": friend, "Access-Control-Request-Method": "POST"}
        assert http.options("/api/generate", headers=asked).status_code == 200
        assert http.get("/healthz", headers={"Host": "Pictures.example:443"}).status_code == 200
        assert http.get("/healthz", headers={"Host": "friend.example"}).status_code == 421
        assert http.post("/api/generate", json={}, headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "named"), [("::1", "[::1]:8000"), ("fd00::7", "[fd00::7]:8000"), ("Studio.local", "studio.local:8000")]
)
def test_own_addresses_are_accepted_as_host_names(host, named):
    access = Access(ServeConfig(host=host))
    assert not access.is_foreign_host(named) and access.is_foreign_host("evil.example")


def test_slow_requests_are_closed():
    with serving(limits=change_limits(header_seconds=0.3, body_seconds=0.3, send_seconds=0.5)) as server:
        began = time.monotonic()
        assert send_raw(server, "GET / HTTP/1.1\r\nHost: loc") == b"", "unfinished headers"
        assert time.monotonic() - began < 8
        kind = "Content-Type: application/json\r\nContent-Length: 9"
        assert send_raw(server, f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n{{").startswith(
            b"HTTP/1.1 408"
        ), "an unfinished body"
        with server.client() as http:
            assert http.get("/healthz").status_code == 200


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("second", [HEALTH, b""], ids=["a head", "an unread body"])
def test_slow_second_requests_are_closed(second):
    """A client must not hold an idle connection open by sending single bytes."""
    with serving(limits=change_limits(header_seconds=0.4)) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(HEALTH + (b"\r\n" if second else b"Content-Length: 9999\r\n\r\n"))
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            connection.sendall(second)

            def refused() -> bool:
                try:
                    connection.sendall(b"x")
                except OSError:
                    return True
                time.sleep(0.05)
                return False

            wait_until(refused, 10)


def test_a_client_that_does_not_read_is_disconnected():
    with serving(limits=change_limits(send_seconds=0.4)) as server, server.client() as http:
        address = http.post("/api/generate", json={"size": "16x16"}).headers["location"]
        wait_until(lambda: http.get(address).json()["state"] == "done")
        url = http.get(address).json()["pictures"][0]["url"]
        server.service.jobs.picture(url.rpartition("/")[2].partition(".")[0])[1].data = bytes(3 * 10**7)
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 10) as connection:
            connection.sendall(f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.recv(1000)
            http.close()
            wait_until(lambda: not server.server.server_state.connections, 10)


def test_a_slow_reader_receives_everything():
    with serving(limits=change_limits(header_seconds=0.2, send_seconds=2.0)) as server, server.client() as http:
        address = http.post("/api/generate", json={"size": "16x16"}).headers["location"]
        wait_until(lambda: http.get(address).json()["state"] == "done")
        url = http.get(address).json()["pictures"][0]["url"]
        server.service.jobs.picture(url.rpartition("/")[2].partition(".")[0])[1].data = bytes(3 * 10**7)
        with http.stream("GET", url) as response:
            got = 0
            for piece in response.iter_raw(10**6):
                got += len(piece)
                time.sleep(0.03)
        assert got == 3 * 10**7


def test_memory_of_request_bodies_is_bounded():
    with serving(limits=change_limits(bodies=50_000)) as server, server.client() as http:
        response = http.post("/api/generate", content=bytes(100_000), headers={"content-type": "application/json"})
        assert "try again" in error_message(response, 503)
        assert http.post("/api/generate", json={"size": "16x16"}).status_code == 202, (
            "memory of the first body is freed"
        )


def test_memory_of_input_images_is_bounded():
    with (
        serving(limits=change_limits(input_bytes=32 * 32 * 3 + 10)) as server,
        server.client() as http,
        server.pause_engine(),
    ):
        form = {"files": {"image": encode_png(noise_image())}, "data": {"prompt": "x"}}
        first = http.post("/api/upscale", **form)
        assert first.status_code == 202
        assert "try again" in error_message(http.post("/api/upscale", **form), 429)
        http.delete(first.headers["location"])
        assert http.post("/api/upscale", **form).status_code == 202


# --- keys ---


def test_no_body_is_read_without_a_key():
    with serving(keys={"a" * 32: "ann"}) as server:
        head = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        answer = send_raw(server, f"{head}Connection: close\r\nContent-Length: 1000\r\n\r\n{{")
        assert answer.startswith(b"HTTP/1.1 401") and b'"code":"invalid_api_key"' in answer


def test_oversized_key_files_are_rejected(tmp_path):
    """If it were truncated, the beginning of its last key would be accepted as a key."""
    (tmp_path / "keys").write_text(f"ann {'a' * 32}\n" + "#" * 2**20)
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        read_keys(tmp_path / "keys")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no keys"),
        ("ann", "1 words; write HOLDER KEY"),
        ("ann short", "too short"),
        ("# x\nann 0123456789abcdef\nbob 0123456789abcdef", "line 3: bob has the same key as ann"),
    ],
)
def test_invalid_key_files_are_rejected(tmp_path, text, expected):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        read_keys(tmp_path / "keys")
    assert "0123456789abcdef" not in str(caught.value)


def test_the_body_limit_fits_the_largest_image():
    assert LIMITS.active_pixels >= LIMITS.pixels
