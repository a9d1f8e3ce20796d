"""Routes of our own API: all sampling options, jobs with their state, and images by their address."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, ValidationError
from starlette.datastructures import UploadFile

from imagen.cascade import Request as CascadeRequest
from imagen.errors import UserError
from imagen.serve.bodies import Route
from imagen.serve.errors import AccessDenied, describe_errors
from imagen.serve.events import EventStream, changes
from imagen.serve.job import Job, Picture
from imagen.serve.pictures import decode_mask, decoded, encoded, from_base64, to_base64
from imagen.serve.requests import ImageRequest, InputImages, PreparedRequest
from imagen.serve.service import Service
from imagen.serve.states import JobState, about_picture, described, file_name

PREVIEW_SIDE = 512  # pixels; larger previews are scaled down
RESPONSES: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}, 202: {"model": JobState}}
router = APIRouter(prefix="/api", tags=["imagen"], route_class=Route)


class Generate(ImageRequest):
    """The body of /api/generate."""

    stream: bool = Field(default=False, description="respond with server-sent events instead of a job")


@router.post("/generate", status_code=202, responses=RESPONSES)
async def generate(fields: Generate, request: Request) -> Response:
    """Generate images. Responds at once with a job; with `stream`, with events until the images are finished.

    A job is cancelled when its client leaves the stream.
    """
    service: Service = request.app.state.service
    client = service.client(request)
    prepared = await service.prepare(fields, lambda: _input_images(fields, service.config.limits.input_pixels))
    kind = "upscale" if fields.start else "edit" if fields.init else "generate"
    return await _respond(service, prepared, client, kind, fields.stream)


@router.post("/upscale", status_code=202, responses=RESPONSES, openapi_extra={
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
        "type": "object", "required": ["image"],
        "properties": {
            "image": {"type": "string", "format": "binary"},
            "stream": {"type": "boolean"},
            **{name: {"description": ImageRequest.model_fields[name].description or name, "type": "string"}
               for name in ("prompt", "scale", "seed", "fast", "steps", "low_res_noise", "tile", "output_format")},
        },
    }}}},
})  # fmt: skip
async def upscale(request: Request) -> Response:
    """Upscale an image with the super-resolution stages. Takes a form: `curl -F image=@photo.png`."""
    service: Service = request.app.state.service
    client = service.client(request)
    form, files = await read_form(request, {"image"})
    if "image" not in files:
        raise UserError("image is missing; send a form with a file of that name")
    stream = form.pop("stream", "false").lower() in ("1", "true")
    fields: ImageRequest = validated(ImageRequest, form)
    max_pixels = service.config.limits.input_pixels
    prepared = await service.prepare(fields, lambda: InputImages(start=decoded(files["image"][0], "image", max_pixels)))
    return await _respond(service, prepared, client, "upscale", stream)


@router.get("/jobs/{id}")
async def job(id: str, request: Request) -> JobState:
    """Return the state of a job, with the addresses of its images."""
    service: Service = request.app.state.service
    found = _job(service, id, request)
    found.collected = found.collected or found.ended
    return described(service, found)


@router.delete("/jobs/{id}")
async def cancel(id: str, request: Request) -> JobState:
    """Cancel a job, or delete one that has ended."""
    service: Service = request.app.state.service
    found = _job(service, id, request)
    if found.ended:
        service.jobs.delete(found)
    service.jobs.cancel(found)
    found.collected = True
    return described(service, found)


@router.get("/pictures/{name}", response_class=Response)
async def picture(name: str, request: Request) -> Response:
    """Return a finished image while the server stores it. Access needs only its unguessable name."""
    service: Service = request.app.state.service
    found = service.jobs.picture(name.partition(".")[0])
    if found is None or found[1].data is None or name != file_name(*found):
        raise AccessDenied(404, "there is no such image, or it has been deleted")
    headers = {"Cache-Control": "private, max-age=600", "Content-Disposition": f'inline; filename="{name}"'}
    return Response(found[1].data, media_type=f"image/{found[0].format}", headers=headers)


@router.get("/about")
async def about(request: Request) -> dict[str, Any]:
    """Return the model, its stages and defaults, the samplers, and the server's limits."""
    service: Service = request.app.state.service
    service.client(request)
    return service.about()


def _job(service: Service, id: str, request: Request) -> Job:
    found = service.jobs.get(id, service.client(request))
    if found is None:
        raise AccessDenied(404, "there is no such job, or it has been deleted")
    return found


async def _respond(service: Service, prepared: PreparedRequest, client: str, kind: str, stream: bool) -> Response:
    job = service.submit(prepared, client, kind, previews=stream)
    if stream:
        return EventStream(_events(service, job, prepared.requests[0]), lambda: service.jobs.abandon(job))
    await warn(service, job, prepared.requests[0])
    return JSONResponse(described(service, job).model_dump(), 202, {"Location": f"/api/jobs/{job.id}"})


async def warn(service: Service, job: Job, request: CascadeRequest) -> None:
    """Add the warning of unknown words to a job, whose images wait or are sampled in the meantime."""
    job.warning = await service.hints.warning(request)
    job.changed()


async def _events(service: Service, job: Job, request: CascadeRequest) -> AsyncIterator[tuple[None, Any]]:
    warning = asyncio.ensure_future(warn(service, job, request))
    try:
        yield None, {"type": "job", **described(service, job).model_dump()}
        shown = dict.fromkeys(job.pictures, 0)
        sent: set[Picture] = set()
        position, warned = -1, False
        async for changed in changes(job):
            if not changed:
                yield None, None
            if job.ended:
                await warning
            if job.warning is not None and not warned:
                warned = True
                yield None, {"type": "warning", "warning": job.warning}
            if job.state == "queued" and (now := service.jobs.position(job)) != position:
                position = now
                yield None, {"type": "queued", "position": position}
            for picture in job.pictures:
                if picture.ended and picture not in sent:
                    sent.add(picture)
                    yield None, {"type": "picture", **about_picture(job, picture).model_dump()}
                elif picture.state == "running" and picture.previews > shown[picture] and picture.preview is not None:
                    shown[picture] = picture.previews
                    value = {"type": "preview", **about_picture(job, picture).model_dump()}
                    value["preview"] = await asyncio.to_thread(_preview, picture.preview)
                    yield None, value
        yield None, {"type": "end", "state": job.state, "error": job.error}
    finally:
        warning.cancel()


def _preview(image: Any) -> str:
    small = image
    if max(image.size) > PREVIEW_SIDE:
        small = image.copy()
        small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return f"data:image/jpeg;base64,{to_base64(encoded(small, 'jpeg', quality=85))}"


def _input_images(fields: ImageRequest, max_pixels: int) -> InputImages:
    """Decode the images of a JSON request. Raises UserError."""

    def data(name: str) -> bytes | None:
        text = getattr(fields, name)
        return None if text is None else from_base64(text, name)

    init, mask, start = data("init"), data("mask"), data("start")
    return InputImages(
        init=None if init is None else decoded(init, "init", max_pixels),
        mask=None if mask is None else decode_mask(mask, "mask", max_pixels),
        start=None if start is None else decoded(start, "start", max_pixels),
    )


async def read_form(request: Request, files: set[str]) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """Return a form's fields, and its files, whose names must be in `files`. Raises UserError."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UserError("the request is not a form; send multipart/form-data")
    fields: dict[str, str] = {}
    found: dict[str, list[bytes]] = {}
    async with request.form(max_files=20, max_fields=50) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in files:
                    raise UserError(f"unknown file {name[:60]!r}; the known ones are {', '.join(sorted(files))}")
                found.setdefault(name.removesuffix("[]"), []).append(await value.read())
            elif name in fields:
                raise UserError(f"{name[:60]} is given twice; send it once")
            else:
                fields[name] = value
    return fields, found


def validated(model: Any, fields: dict[str, Any]) -> Any:
    """Return the fields of a form as a pydantic model. Raises UserError."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UserError(describe_errors(error.errors())[0]) from None
