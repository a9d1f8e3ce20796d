"""The OpenAI API's routes for pictures, as its official clients call them."""

from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from imagen.errors import UserError
from imagen.serve.api import checked, file_name, form_of
from imagen.serve.bodies import Route
from imagen.serve.errors import Denied, body
from imagen.serve.events import EventStream, changes, status_of, until_ended
from imagen.serve.job import Job, Picture
from imagen.serve.pictures import Format, as_rgb_checked, encoded, holes, mask_of, to_base64
from imagen.serve.requests import Asked, Each, EachWhole, Given, Prepared
from imagen.serve.service import Service

STRENGTH = 0.7  # of an edit without a mask: enough to follow the prompt, and little enough to know the picture again
router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=Route)


class Images(BaseModel):
    """What OpenAI's clients send. The last fields are ours, for `extra_body`."""

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
    # Accepted, and without an effect here:
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

    def asked(self) -> Asked:
        ours = ("prompt", "n", "size", "output_format", "seed", "negative", "steps", "guidance", "strength")
        values = {name: value for name in ours if (value := getattr(self, name)) is not None}
        quality = None if self.output_compression is None else max(self.output_compression, 1)
        return checked(Asked, {**values, "quality": quality})


@router.get("/models")
def models(request: Request) -> dict[str, Any]:
    """The one model of this server."""
    service: Service = request.app.state.service
    service.client(request)
    return {"object": "list", "data": [_model(service)]}


@router.get("/models/{name}")
def model(name: str, request: Request) -> dict[str, Any]:
    """That model, by its name."""
    service: Service = request.app.state.service
    service.client(request)
    _check_model(service, name)
    return _model(service)


@router.post("/images/generations", response_class=JSONResponse)
async def generations(images: Images, request: Request) -> Response:
    """Pictures of a prompt."""
    service: Service = request.app.state.service
    client = service.client(request)
    _check_model(service, images.model)
    prepared = await service.prepared(images.asked(), Given)
    return await _answer(service, request, images, prepared, client, "generate")


@router.post("/images/edits", response_class=JSONResponse, openapi_extra={
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
        "type": "object", "required": ["image", "prompt"],
        "properties": {
            "image": {"type": "string", "format": "binary"},
            "mask": {"type": "string", "format": "binary", "description": "transparent where to draw anew"},
            **{name: {"type": "string"} for name in Images.model_fields},
        },
    }}}},
})  # fmt: skip
async def edits(request: Request) -> Response:
    """A picture drawn anew where the mask (or else the picture) is transparent, or wholly but alike without one."""
    service: Service = request.app.state.service
    client = service.client(request)
    fields, files = await form_of(request, {"image", "image[]", "mask"})
    images: Images = checked(Images, fields)
    _check_model(service, images.model)
    if len(files.get("image", ())) != 1 or len(files.get("mask", "1")) != 1:
        raise UserError(f"{len(files.get('image', ()))} pictures to edit; send one as image, and at most one as mask")
    most = service.config.limits.given_pixels

    def given() -> Given:
        image, alpha = as_rgb_checked(files["image"][0], "image", most)
        mask = mask_of(files["mask"][0], "mask", most) if "mask" in files else holes(alpha)
        if mask is None and asked.strength is None:
            asked.strength = STRENGTH
        return Given(init=image, mask=mask)

    asked = images.asked()
    prepared = await service.prepared(asked, given)
    return await _answer(service, request, images, prepared, client, "edit")


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.config.name, "object": "model", "created": 0, "owned_by": "imagen"}


def _check_model(service: Service, name: str | None) -> None:
    if name is not None and name != service.config.name:
        text = f"there is no model {name[:60]!r}; this server has {service.config.name!r}"
        raise Denied(404, text, param="model", code="model_not_found")


async def _answer(
    service: Service, request: Request, images: Images, prepared: Prepared, client: str, kind: str
) -> Response:
    if images.stream:
        job = service.submit(prepared, client, kind, partials=images.partial_images or 0)
        events = _events(job, "image_generation" if kind == "generate" else "image_edit", prepared.format)
        return EventStream(events, lambda: service.jobs.left(job))
    job = service.submit(prepared, client, kind)
    await until_ended(request, service.jobs, job)
    pictures = [_picture(request, job, picture, images.response_format) for picture in job.pictures]
    return JSONResponse({"data": pictures, **_about(job, job.pictures[0])})


def _picture(request: Request, job: Job, picture: Picture, response_format: str | None) -> dict[str, Any]:
    if response_format == "url":
        return {"url": str(request.base_url) + f"api/pictures/{file_name(job, picture)}"}
    return {"b64_json": to_base64(picture.data or b"")}


def _about(job: Job, picture: Picture) -> dict[str, Any]:
    """Fields of answers and events. No tokens are counted: nothing is sold."""
    return {
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


async def _events(job: Job, name: str, format: Format) -> AsyncIterator[tuple[str | None, Any]]:
    sent = dict.fromkeys(job.pictures, 0)
    told: set[Picture] = set()
    async for changed in changes(job):
        if not changed:
            yield None, None
        for picture in job.pictures:
            while sent[picture] < len(picture.partials):
                image = picture.partials[sent[picture]]
                about = {**_about(job, picture), "size": f"{image.width}x{image.height}"}
                about["created_at"] = about.pop("created")
                about.pop("usage")
                about |= {"b64_json": to_base64(encoded(image, format)), "partial_image_index": sent[picture]}
                sent[picture] += 1
                yield f"{name}.partial_image", {"type": f"{name}.partial_image", **about}
            if picture.state == "done" and picture not in told:
                told.add(picture)
                about = _about(job, picture)
                about["created_at"] = about.pop("created")
                about["b64_json"] = to_base64(picture.data or b"")
                yield f"{name}.completed", {"type": f"{name}.completed", **about}
    if job.state != "done":
        yield "error", {"type": "error", **body(job.error or "the request was cancelled", status_of(job))}
