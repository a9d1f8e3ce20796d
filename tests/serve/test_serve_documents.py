"""Check the documentation of serving and deploy/: commands parse, files are well-formed, limits match the code."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from imagen.cli.parser import parse
from imagen.serve.config import Limits, ServeConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "howto" / "serve.md", ROOT / "docs" / "reference" / "serving.md"]
DOCS = "".join(page.read_text() for page in PAGES)
DEPLOY = ROOT / "deploy"


def serve_commands() -> list[str]:
    texts = [DOCS, *(path.read_text() for path in DEPLOY.iterdir())]
    found = [
        line for text in texts for line in re.findall(r"(?:^|=/opt/imagen/bin/|`)(imagen serve [^`\n#]*)", text, re.M)
    ]
    assert len(found) >= 5
    return found


@pytest.mark.parametrize("line", serve_commands())
def test_documented_commands_parse(line):
    options = parse(shlex.split(line)[1:])
    assert options.command == "serve"


def test_container_files_are_well_formed():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    entry, arguments = (
        json.loads(re.search(rf"^{word} (\[.*\])$", dockerfile, re.M)[1])  # type: ignore[index]
        for word in ("ENTRYPOINT", "CMD")
    )
    assert parse([*entry, *arguments][1:]).host == "0.0.0.0"
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["imagen"]
    assert parse(["serve", *compose["command"]]).cascade == Path("emoji")
    for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.M):
        assert all((ROOT / path).exists() for path in line.split()), line
        ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
        assert all(f"!{path}" in ignore for path in line.split()), line
    assert (DEPLOY / compose["build"]["context"] / compose["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert "/readyz" in compose["healthcheck"]["test"][-1]
    assert int(compose["stop_grace_period"].rstrip("s")) > ServeConfig().drain
    unit = (DEPLOY / "imagen-serve.service").read_text()
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > ServeConfig().drain  # type: ignore[index]


def test_documented_limits_match_the_code():
    limits = Limits()
    for text_in_docs, value in (
        ("images per request | 10, ", limits.n == 10),
        ("steps per stage | 250 |", limits.steps == 250),
        ("prompt | 2,000 characters", limits.prompt == 2000),
        ("result | 2^21 pixels", limits.pixels == 2**21),
        ("2^24 pixels", limits.input_pixels == 2**24),
        ("32 MiB; 256 MiB", limits.body == 2**25 and limits.bodies == 2**28),
        ("queue | 256 |", limits.queue == 256),
        ("memory | 512 MiB |", limits.input_bytes == 2**29),
        ("64, and 2^23 pixels", limits.active == 64 and limits.active_pixels == 2**23),
        ("600 s |", ServeConfig().timeout == 600),
        ("15 s; 60 s; 60 s", (limits.header_seconds, limits.body_seconds, limits.send_seconds) == (15, 60, 60)),
        ("connections | 512 |", limits.connections == 512),
        ("256 MiB, 4,096 jobs", limits.stored_bytes == 2**28 and limits.stored_jobs == 4096),
    ):
        assert text_in_docs in DOCS and value, text_in_docs
    assert "client_max_body_size 32m" in (DEPLOY / "nginx.conf").read_text()


def test_linked_pages_and_documented_metrics_exist():
    from imagen.serve.metrics import Metrics

    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), target
    names = {metric.name for metric in Metrics().registry.collect()}
    for name in re.findall(r"`(imagen_[a-z_]+)", DOCS):
        assert name.removesuffix("_total") in names, name
