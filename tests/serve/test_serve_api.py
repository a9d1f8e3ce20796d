"""Test the HTTP API with OpenAI's client and with plain HTTP."""

import base64
import json
import shlex
import threading

import httpx
import numpy as np
import pytest
from cascades import max_difference
from PIL import Image
from serving import change_limits, decode_image, encode_png, noise_image, serving, tiny_cascade, wait_until

from imagen.cascade import Cascade, Variation
from imagen.pictures import read_metadata, read_picture
from imagen.serve.states import JobState


@pytest.fixture(scope="module")
def running():
    with serving() as server:
        yield server


@pytest.fixture
def http(running):
    with running.client() as client:
        yield client


def sampled(prompt="cat", **request):
    return tiny_cascade().sample([prompt], progress=False, precision="fp32", device="cpu", **request)[0]


def response_images(response) -> list[Image.Image]:
    assert response.status_code == 200, response.text
    return [decode_image(base64.b64decode(each["b64_json"])) for each in response.json()["data"]]


def stream_events(response) -> list[dict]:
    return [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: ")]


# --- OpenAI's client, unchanged ---


@pytest.fixture(scope="module")
def openai(running):
    package = pytest.importorskip("openai")
    with running.client() as client:
        yield package.OpenAI(api_key="whatever", base_url=f"{running.url}/v1", http_client=client, max_retries=0)


def test_openai_client_generates_images(openai):
    made = openai.images.generate(prompt="cat", n=2, size="32x32", extra_body={"seed": 5})
    assert made.size == "32x32" and made.output_format == "png" and len(made.data) == 2
    for i, each in enumerate(made.data):
        assert max_difference(decode_image(base64.b64decode(each.b64_json)), sampled(seeds=5 + i)) <= 1
    small = openai.images.generate(
        model="tiny", prompt="cat", size="16x16", output_format="jpeg", response_format="url"
    )
    assert small.data[0].url.endswith(".jpeg")
    image = decode_image(openai._client.get(small.data[0].url).content)
    assert image.format == "JPEG" and image.size == (16, 16)


def test_openai_client_streams_partial_images(openai):
    stream = openai.images.generate(
        prompt="dog", stream=True, partial_images=2, extra_body={"seed": 1, "steps": [6, 3]}
    )
    seen = list(stream)
    assert [event.type for event in seen] == [
        *["image_generation.partial_image"] * 2,
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in seen[:2]] == [0, 1]
    images = [decode_image(base64.b64decode(event.b64_json)) for event in seen]
    assert [image.size for image in images] == [(16, 16), (16, 16), (32, 32)], "after steps 3 and 6 of 9"
    assert max_difference(images[2], sampled("dog", seeds=1, steps=[6, 3])) <= 1
    assert seen[2].usage.total_tokens == 0 and seen[2].size == "32x32"


def test_openai_client_edits_images(openai):
    image, mask = noise_image(), Image.new("RGBA", (32, 32), "white")
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))  # the left half is transparent, hence regenerated
    made = openai.images.edit(
        image=("image.png", encode_png(image)),
        mask=("mask.png", encode_png(mask)),
        prompt="cat",
        extra_body={"seed": 3},
    )
    edited = decode_image(base64.b64decode(made.data[0].b64_json))
    white = Image.new("L", (32, 32), 0)
    white.paste(255, (0, 0, 16, 32))
    assert max_difference(edited, sampled(seeds=3, init=image, mask=white)) <= 1
    assert np.array_equal(np.asarray(edited)[:, 16:], np.asarray(image)[:, 16:]), "the opaque region is unchanged"
    alike = openai.images.edit(image=encode_png(image), prompt="cat", extra_body={"seed": 3})
    alike = decode_image(base64.b64decode(alike.data[0].b64_json))
    assert max_difference(alike, sampled(seeds=3, init=image, strength=0.7)) <= 1
    seen = list(openai.images.edit(image=[encode_png(image)], prompt="cat", stream=True, partial_images=1))
    assert [event.type for event in seen] == ["image_edit.partial_image", "image_edit.completed"]


def test_openai_client_lists_models_and_raises_for_errors(openai):
    import openai as package

    assert [model.id for model in openai.models.list()] == ["tiny"]
    assert openai.models.retrieve("tiny").owned_by == "imagen"
    with pytest.raises(package.NotFoundError, match="no model 'gpt-image-1'; this server has 'tiny'"):
        openai.images.generate(model="gpt-image-1", prompt="cat")
    with pytest.raises(package.UnprocessableEntityError, match="the limit of a request is 4"):
        openai.images.generate(prompt="cat", n=9)


# --- our own API ---


def test_all_sampling_options_are_accepted(http):
    image, mask = noise_image(), noise_image(seed=1).convert("L")
    request = {"steps": [5, 2], "guidance": [3.0, 1.0], "sampler": "heun", "strength": 0.5, "negative": "dog"}
    body = {"prompt": "cat", "seed": 4, "init": data_url(image), "mask": data_url(mask), **request, "stream": True}
    seen = stream_events(http.post("/api/generate", json=body))
    assert [event["type"] for event in seen[:2]] == ["job", "queued"] and seen[-1] == {
        "type": "end",
        "state": "done",
        "error": None,
    }
    (picture,) = [event for event in seen if event["type"] == "picture"]
    found = decode_image(http.get(picture["url"]).content)
    assert max_difference(found, sampled(seeds=4, init=image, mask=mask, **request)) <= 1
    body = {
        "prompt": "cat",
        "seed": 4,
        "n": 2,
        "variation": {"seed": 9, "amount": 0.2},
        "size": "16x16",
        "stream": True,
    }
    found = [event for event in stream_events(http.post("/api/generate", json=body)) if event["type"] == "picture"]
    for i, picture in enumerate(sorted(found, key=lambda picture: picture["number"])):
        assert (
            max_difference(
                decode_image(http.get(picture["url"]).content), sampled(seeds=[Variation(9, 4 + i, 0.2)], stages=1)
            )
            <= 1
        )


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def test_the_stream_has_previews_and_the_command(http):
    body = {"prompt": "a cat", "seed": 7, "steps": [8, 4], "stream": True, "guidance": 2.5}
    seen = stream_events(http.post("/api/generate", json=body))
    previews = [event for event in seen if event["type"] == "preview"]
    sizes = [decode_image(base64.b64decode(event["preview"].partition(",")[2])).size for event in previews]
    assert (16, 16) in sizes and sizes == sorted(sizes)
    assert [event["progress"] for event in previews] == sorted(event["progress"] for event in previews)
    (picture,) = [event for event in seen if event["type"] == "picture"]
    words = shlex.split(picture["command"])
    assert words[:3] == ["imagen", "sample", "CASCADE"]
    assert words[3:] == ["--stages=2", "--seed=7", "--steps=8,4", "--guidance=2.5", "--out", "pictures", "a cat"]
    body = {"prompt": "a cat", "seed": 7, "steps": 1, "size": "24x24", "stages": 1, "stream": True}
    (picture,) = (event for event in stream_events(http.post("/api/generate", json=body)) if event["type"] == "picture")
    assert shlex.split(picture["command"])[3:7] == ["--stages=1", "--size", "24", "24"]


def test_the_command_and_the_file_regenerate_the_image(imagen, tmp_path, caplog):
    """Uses the packaged weights, alone and in a batch, with one stage and few steps."""
    with (
        serving(Cascade.load("emoji", stages=1), cascade="emoji", limits=change_limits(prompt=1_000)) as server,
        server.client() as http,
    ):
        body = {"prompt": "an octopus on a blue background", "seed": 7, "size": "64x64", "steps": 3, "guidance": 2.5}
        with server.pause_engine():
            other = {"prompt": "a cat", "n": 2, "size": "64x64", "steps": 3, "sampler": "ddpm"}
            assert http.post("/api/generate", json=other).status_code == 202
            address = http.post("/api/generate", json=body).headers["location"]
        wait_until(lambda: http.get(address).json()["state"] == "done")
        (picture,) = http.get(address).json()["pictures"]
        long = {"prompt": "a " * 480, "size": "64x64", "steps": 1, "stream": True}
        assert stream_events(http.post("/api/generate", json=long))[-1]["state"] == "done"
        assert "a a a" not in caplog.text, "prompts are not logged, not even truncated ones"
        served = tmp_path / "served.png"
        served.write_bytes(http.get(picture["url"]).content)
    words = shlex.split(picture["command"])
    assert words.pop(0) == "imagen"
    words[words.index("pictures")] = str(tmp_path / "drawn")
    imagen(*words, "--precision", "fp32", "--device", "cpu")
    drawn = read_picture(tmp_path / "drawn" / "0000.png")
    assert max_difference(drawn, read_picture(served)) <= 1
    imagen("sample", "emoji", "--from", served, "--out", tmp_path / "again", "--device", "cpu")
    assert max_difference(read_picture(tmp_path / "again" / "0000.png"), drawn) <= 1


def test_png_files_have_provenance(http, tmp_path):
    made = http.post("/v1/images/generations", json={"prompt": "cat", "seed": 11}).json()["data"][0]
    path = tmp_path / "picture.png"
    path.write_bytes(base64.b64decode(made["b64_json"]))
    found = read_metadata(path)
    assert (found["prompt"], found["seed"], found["size"]) == ("cat", 11, [32, 32])
    assert found["conditions"]["batch"] == 1


def test_jobs_report_their_state_and_can_be_cancelled(running, http):
    response = http.post("/api/generate", json={"prompt": "cat", "seed": 2, "n": 2})
    assert response.status_code == 202
    address = response.headers["location"]
    wait_until(lambda: http.get(address).json()["state"] == "done")
    job = http.get(address).json()
    assert [picture["seed"] for picture in job["pictures"]] == [2, 3]
    assert max_difference(decode_image(http.get(job["pictures"][1]["url"]).content), sampled(seeds=3)) <= 1
    assert http.delete(address).status_code == 200 and http.get(address).status_code == 404
    assert http.get(job["pictures"][1]["url"]).status_code == 404
    with running.pause_engine():
        address = http.post("/api/generate", json={"prompt": "cat", "n": 4}).headers["location"]
        assert http.delete(address).json()["state"] == "cancelled"
    wait_until(lambda: running.service.engines[0].load() == (0, 0))


def test_images_are_upscaled(http):
    image = noise_image(16)
    response = http.post(
        "/api/upscale",
        files={"image": encode_png(image)},
        data={"prompt": "cat", "seed": "3", "stages": "2", "stream": "1"},
    )
    (picture,) = [event for event in stream_events(response) if event["type"] == "picture"]
    assert max_difference(decode_image(http.get(picture["url"]).content), sampled(seeds=3, start=[image])) <= 1
    assert "imagen upscale CASCADE picture.png --prompt cat --stages=2 --seed=3" in picture["command"]
    body = {"prompt": "cat", "negative": "dog", "start": data_url(image), "stages": 2, "stream": True}
    (picture,) = [event for event in stream_events(http.post("/api/generate", json=body)) if event["type"] == "picture"]
    assert picture["command"] == "", "`imagen upscale` takes no negative prompt"


def test_a_client_that_disconnects_cancels_its_job(running, http):
    with running.pause_engine():
        with http.stream("POST", "/api/generate", json={"prompt": "cat", "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            assert running.service.jobs.unfinished()
        wait_until(lambda: not running.service.jobs.unfinished())
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/images/generations", json={"prompt": "cat"}, timeout=1.0)
        wait_until(lambda: not running.service.jobs.unfinished())
    wait_until(lambda: running.service.engines[0].load() == (0, 0))


def test_concurrent_clients_get_their_own_images(running):
    """Each client gets the images of its own seed, and some requests share batches."""
    found: dict[int, Image.Image] = {}

    def request_one(seed: int) -> None:
        with running.client() as client:
            found[seed] = response_images(client.post("/v1/images/generations", json={"prompt": "cat", "seed": seed}))[
                0
            ]

    with running.pause_engine():
        threads = [threading.Thread(target=request_one, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(running.service.jobs.unfinished()) == 8)
    for thread in threads:
        thread.join(60)
    for seed in range(8):
        assert max_difference(found[seed], sampled(seeds=seed)) <= 1
    text = running.service.metrics.text().decode()
    assert 'imagen_batch_pictures_bucket{le="4.0",stage="16"}' in text
    registry = running.service.metrics.registry
    large = registry.get_sample_value("imagen_batch_pictures_count", {"stage": "16"})
    assert large > registry.get_sample_value("imagen_batch_pictures_bucket", {"stage": "16", "le": "4.0"})


def test_a_full_queue_is_reported_with_retry_after():
    with serving(limits=change_limits(queue=2, active=1)) as server, server.client() as http, server.pause_engine():
        http.post("/api/generate", json={"n": 1})
        wait_until(lambda: server.service.engines[0].load() == (0, 1))
        waiting = [http.post("/api/generate", json={"n": 1}).json() for _ in range(2)]
        assert [(job["state"], job["position"]) for job in waiting] == [("queued", 1), ("queued", 2)]
        described = JobState.model_fields["position"].description
        assert described == "1 + images of other jobs that start earlier; 0: the job no longer waits"
        response = http.post("/v1/images/generations", json={"prompt": "cat"})
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert "2 images are already in the queue" in response.json()["error"]["message"]
        assert server.service.metrics.registry.get_sample_value("imagen_pictures_total", {"end": "refused"}) == 1


def test_a_timeout_is_504():
    with serving(timeout=0.4) as server, server.client() as http, server.pause_engine():
        response = http.post("/v1/images/generations", json={"prompt": "cat"})
        assert response.status_code == 504 and "longer than 0.4 seconds" in response.json()["error"]["message"]


def test_two_engines_share_the_images():
    with serving(engines=2) as server, server.client() as http:
        assert len(response_images(http.post("/v1/images/generations", json={"prompt": "cat", "n": 4, "seed": 1}))) == 4
        drawn = [engine.scheduler.arrived for engine in server.service.engines]
        assert drawn == [2, 2]


def test_keys_and_rate_limits_are_enforced():
    keys = {"a" * 32: "ann", "b" * 32: "bob"}
    with serving(keys=keys, rate=5.0) as server, server.client() as http:
        assert http.get("/v1/models").status_code == 401
        assert http.get("/metrics").status_code == 401
        assert http.get("/healthz").status_code == 200
        response = http.post("/api/generate", json={"prompt": "cat"}, headers={"Authorization": "Bearer wrong"})
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        ann, bob = ({"Authorization": f"Bearer {key}"} for key in keys)
        first = http.post("/api/generate", json={"prompt": "cat", "n": 4}, headers=ann)
        assert first.status_code == 202
        again = http.post("/api/generate", json={"prompt": "cat", "n": 4}, headers=ann)
        assert again.status_code == 429 and 20 < int(again.headers["retry-after"]) <= 40, "3 images at 5 per minute"
        assert http.get(first.headers["location"], headers=bob).status_code == 404, "the job of another client"
        assert http.post("/api/generate", json={"prompt": "cat", "n": 4}, headers=bob).status_code == 202


@pytest.mark.parametrize(("proxies", "https", "separate"), [((), False, False), (("127.0.0.0/8",), True, True)])
def test_clients_behind_a_trusted_proxy_have_their_own_address(proxies, https, separate):
    with serving(proxies=proxies, rate=4.0) as server, server.client() as http:
        statuses = []
        for address in ("192.0.2.1", "192.0.2.2"):
            headers = {"X-Forwarded-For": f"203.0.113.9, {address}", "X-Forwarded-Proto": "https"}
            body = {"prompt": "cat", "n": 3, "size": "16x16", "response_format": "url"}
            response = http.post("/v1/images/generations", json=body, headers=headers)
            statuses.append(response.status_code)
            if response.status_code == 200:
                assert response.json()["data"][0]["url"].startswith("https:" if https else "http:")
    assert statuses == ([200, 200] if separate else [200, 429]), (
        "clients are identified by the address that the proxy saw"
    )


def test_requests_rejected_by_the_queue_do_not_count_towards_the_rate():
    with serving(limits=change_limits(queue=2), rate=5.0) as server, server.client() as http:
        for _ in range(3):
            assert http.post("/api/generate", json={"n": 4}).json()["error"]["code"] == "queue_full"
        assert http.post("/api/generate", json={"n": 2}).status_code == 202


def test_checks_of_the_operator_reject_prompts_and_images():
    checks = {
        "check_prompt": lambda prompt: "no dogs here" if "dog" in prompt else None,
        "check_picture": lambda image: "too blue" if image.size == (16, 16) else None,
    }
    with serving(**checks) as server, server.client() as http:
        response = http.post("/v1/images/generations", json={"prompt": "a dog"})
        assert response.status_code == 403 and response.json()["error"]["message"] == "no dogs here"
        body = {"prompt": "a cat", "negative": "dog", "guidance": 0.0}  # guidance 0 samples the negative prompt
        assert http.post("/api/generate", json=body).status_code == 403
        response = http.post("/v1/images/generations", json={"prompt": "a cat", "size": "16x16"})
        assert response.status_code == 422 and response.json()["error"]["message"] == "too blue"
        seen = stream_events(http.post("/api/generate", json={"prompt": "cat", "stream": True}))
        assert not [event for event in seen if event["type"] == "preview"], (
            "previews could show images that the check rejects"
        )
        assert seen[-1]["state"] == "done"


def test_memory_of_finished_images_is_bounded():
    with serving(limits=change_limits(stored_bytes=6_000)) as server, server.client() as http:
        for seed in range(6):
            response_images(http.post("/v1/images/generations", json={"prompt": "cat", "seed": seed, "size": "32x32"}))
        jobs = server.service.jobs
        assert 0 < jobs.stored_bytes <= 6_000 + 4_000 and len(jobs.jobs) < 6
        assert jobs.stored_bytes == sum(len(picture.data or b"") for _, picture in jobs.pictures.values())


def test_health_metrics_and_documents_are_served(running, http):
    assert http.get("/healthz").text == "ok\n"
    assert http.get("/readyz").json() == {"ready": True}
    text = http.get("/metrics").text
    for name in ("imagen_pictures_waiting", "imagen_stage_seconds_bucket", 'imagen_memory_bytes{of="process"}'):
        assert name in text
    schema = http.get("/openapi.json").json()
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/models", "/api/generate", "/api/upscale"} <= set(
        schema["paths"]
    )
    assert "/api/jobs/{id}" in schema["paths"]
    about = http.get("/api/about").json()
    assert [stage["resolution"] for stage in about["stages"]] == [16, 32] and about["limits"]["n"] == 4
