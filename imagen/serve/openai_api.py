"""Routes of OpenAI's image API, for its official clients."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from imagen.errors import UserError
from imagen.serve.api import read_form, validated, warn
from imagen.serve.bodies import Route
from imagen.serve.errors import AccessDenied, error_body
from imagen.serve.events import EventStream, changes, status_of, until_ended
from imagen.serve.job import Job, Picture
from imagen.serve.pictures import Format, decode_mask, decode_with_alpha, encoded, to_base64, transparency_mask
from imagen.serve.requests import Each, EachWhole, ImageRequest, InputImages, PreparedRequest
from imagen.serve.service import Service
from imagen.serve.states import file_name

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=Route)


class Images(BaseModel):
    """The fields that OpenAI's clients send, and some of our own, which clients put into `extra_body`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    prompt: str
    model: str | None = None
    n: int | None = Field(default=None, ge=1)
    size: str | None = Field(default=None, max_length=20, description="WIDTHxHEIGHT, or auto")
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    background: Literal["auto", "opaque"] | None = None
    # Accepted without effect:
    quality: str | None = Field(default=None, max_length=20)
    style: str | None = Field(default=None, max_length=20)
    moderation: str | None = Field(default=None, max_length=20)
    user: str | None = Field(default=None, max_length=256)
    input_fidelity: str | None = Field(default=None, max_length=20)
    # Ours:
    seed: int | None = None
    negative: str | None = None
    steps: EachWhole | None = None
    guidance: Each | None = None
    strength: Each | None = None
    fast: bool | None = Field(default=None, description="sample in few steps, if the cascade has settings for it")

    def image_request(self) -> ImageRequest:
        """Return the request in terms of our own API. Raises UserError."""
        ours = ("prompt", "n", "size", "output_format", "seed", "negative", "steps", "guidance", "strength", "fast")
        values = {name: value for name in ours if (value := getattr(self, name)) is not None}
        quality = None if self.output_compression is None else max(self.output_compression, 1)
        return validated(ImageRequest, {**values, "quality": quality})


@router.get("/models")
def models(request: Request) -> dict[str, Any]:
    """List the one model of this server."""
    service: Service = request.app.state.service
    service.client(request)
    return {"object": "list", "data": [_model(service)]}


@router.get("/models/{name}")
def model(name: str, request: Request) -> dict[str, Any]:
    """Return the model by its name."""
    service: Service = request.app.state.service
    service.client(request)
    _check_model(service, name)
    return _model(service)


@router.post("/images/generations", response_class=JSONResponse)
async def generations(images: Images, request: Request) -> Response:
    """Generate images from a prompt."""
    service: Service = request.app.state.service
    client = service.client(request)
    _check_model(service, images.model)
    prepared = await service.prepare(images.image_request(), InputImages)
    return await _respond(service, request, images, prepared, client, "generate")


@router.post("/images/edits", response_class=JSONResponse, openapi_extra={
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
        "type": "object", "required": ["image", "prompt"],
        "properties": {
            "image": {"type": "string", "format": "binary"},
            "mask": {"type": "string", "format": "binary", "description": "transparent where the image is regenerated"},
            **{name: {"type": "string"} for name in Images.model_fields},
        },
    }}}},
})  # fmt: skip
async def edits(request: Request) -> Response:
    """Regenerate an image where the mask, or else the image, is transparent; without either, vary the whole image."""
    service: Service = request.app.state.service
    client = service.client(request)
    form, files = await read_form(request, {"image", "image[]", "mask"})
    images: Images = validated(Images, form)
    _check_model(service, images.model)
    if len(files.get("image", ())) != 1 or len(files.get("mask", "1")) != 1:
        raise UserError(
            f"the form has {len(files.get('image', ()))} images; send one as image, and at most one as mask"
        )
    max_pixels = service.config.limits.input_pixels
    fields = images.image_request()

    def decode() -> InputImages:
        image, alpha = decode_with_alpha(files["image"][0], "image", max_pixels)
        mask = decode_mask(files["mask"][0], "mask", max_pixels) if "mask" in files else transparency_mask(alpha)
        return InputImages(init=image, mask=mask)

    prepared = await service.prepare(fields, decode)
    return await _respond(service, request, images, prepared, client, "edit")


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.config.name, "object": "model", "created": 0, "owned_by": "imagen"}


def _check_model(service: Service, name: str | None) -> None:
    if name is not None and name != service.config.name:
        text = f"there is no model {name[:60]!r}; this server has {service.config.name!r}"
        raise AccessDenied(404, text, param="model", code="model_not_found")


async def _respond(
    service: Service, request: Request, images: Images, prepared: PreparedRequest, client: str, kind: str
) -> Response:
    if images.stream:
        job = service.submit(prepared, client, kind, partials=images.partial_images or 0)
        name = "image_generation" if kind == "generate" else "image_edit"
        events = _events(service, job, prepared, name)
        return EventStream(events, lambda: service.jobs.abandon(job))
    job = service.submit(prepared, client, kind)
    reader = asyncio.Event()
    job.watchers.add(reader)  # until its images are read: an ended job without watchers may be deleted
    warning = asyncio.ensure_future(warn(service, job, prepared.requests[0]))
    try:
        await until_ended(request, service.jobs, job)
        pictures = [_picture(request, job, picture, images.response_format) for picture in job.pictures]
        await warning
        return JSONResponse({"data": pictures, **_about(job, job.pictures[0])})
    finally:
        job.watchers.discard(reader)
        warning.cancel()


def _picture(request: Request, job: Job, picture: Picture, response_format: str | None) -> dict[str, Any]:
    if response_format == "url":
        return {"url": str(request.base_url) + f"api/pictures/{file_name(job, picture)}"}
    return {"b64_json": to_base64(picture.data or b"")}


def _about(job: Job, picture: Picture) -> dict[str, Any]:
    """Return the fields that responses and events share. Usage is zero: tokens are not counted.

    The warning of unknown words is ours; OpenAI's clients keep fields that they do not know.
    """
    return {
        **({} if job.warning is None else {"warning": job.warning}),
        "created": int(job.created),
        "background": "opaque",
        "output_format": job.format,
        "quality": "auto",
        "size": f"{picture.size[0]}x{picture.size[1]}",
        "usage": {
            "total_tokens": 0,
            "input_tokens": 0,
            "output_tokens": 0,
            "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
        },
    }


async def _events(
    service: Service, job: Job, prepared: PreparedRequest, name: str
) -> AsyncIterator[tuple[str | None, Any]]:
    warning = asyncio.ensure_future(warn(service, job, prepared.requests[0]))
    sent = dict.fromkeys(job.pictures, 0)
    completed: set[Picture] = set()
    try:
        async for changed in changes(job):
            if not changed:
                yield None, None
            for picture in job.pictures:
                while sent[picture] < len(picture.partials):
                    image = picture.partials[sent[picture]]
                    about = {**_about(job, picture), "size": f"{image.width}x{image.height}"}
                    about["created_at"] = about.pop("created")
                    about.pop("usage")
                    about.pop("warning", None)  # it may not be known yet
                    data = to_base64(await asyncio.to_thread(encoded, image, prepared.format))
                    about |= {"b64_json": data, "partial_image_index": sent[picture]}
                    sent[picture] += 1
                    yield f"{name}.partial_image", {"type": f"{name}.partial_image", **about}
                if picture.state == "done" and picture not in completed:
                    completed.add(picture)
                    await warning
                    about = _about(job, picture)
                    about["created_at"] = about.pop("created")
                    about["b64_json"] = to_base64(picture.data or b"")
                    yield f"{name}.completed", {"type": f"{name}.completed", **about}
        if job.state != "done":
            yield "error", {"type": "error", **error_body(job.error or "the request was cancelled", status_of(job))}
    finally:
        warning.cancel()
