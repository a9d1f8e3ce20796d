"""Our own API: everything that sampling can do, jobs that can be asked after, and pictures by their address."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from imagen.errors import UserError
from imagen.serve.bodies import Route
from imagen.serve.errors import Denied, sentence
from imagen.serve.events import EventStream, changes
from imagen.serve.job import Job, Picture
from imagen.serve.pictures import decoded, encoded, from_base64, mask_of, to_base64
from imagen.serve.requests import Asked, Given, Prepared
from imagen.serve.service import Service

PREVIEW_SIDE = 512  # of larger ones, in pixels
router = APIRouter(prefix="/api", tags=["imagen"], route_class=Route)


class Generate(Asked):
    stream: bool = False  # server-sent events in place of a job to ask after


@router.post("/generate", status_code=202, responses={200: {"content": {"text/event-stream": {}}}})
async def generate(asked: Generate, request: Request) -> Response:
    """Make pictures. Answers at once with a job; with `stream`, with events until the pictures are there.

    A stream that its client leaves is cancelled.
    """
    service: Service = request.app.state.service
    client = service.client(request)
    prepared = await service.prepared(asked, lambda: _given(asked, service.config.limits.given_pixels))
    kind = "upscale" if asked.start else "edit" if asked.init else "generate"
    return _answer(service, prepared, client, kind, asked.stream)


@router.post("/upscale", status_code=202, responses={200: {"content": {"text/event-stream": {}}}}, openapi_extra={
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
        "type": "object", "required": ["image"],
        "properties": {
            "image": {"type": "string", "format": "binary"},
            "stream": {"type": "boolean"},
            **{name: {"description": Asked.model_fields[name].description or name, "type": "string"}
               for name in ("prompt", "scale", "seed", "steps", "low_res_noise", "tile", "output_format")},
        },
    }}}},
})  # fmt: skip
async def upscale(request: Request) -> Response:
    """Enlarge a picture with the super-resolution stages alone: a form with `image`, as `curl -F image=@photo.png`."""
    service: Service = request.app.state.service
    client = service.client(request)
    fields, files = await form_of(request, {"image"})
    if "image" not in files:
        raise UserError("image is missing: send a form with a file of that name")
    stream = fields.pop("stream", "false").lower() in ("1", "true")
    asked = checked(Asked, fields)
    most = service.config.limits.given_pixels
    prepared = await service.prepared(asked, lambda: Given(start=decoded(files["image"][0], "image", most)))
    return _answer(service, prepared, client, "upscale", stream)


@router.get("/jobs/{id}")
async def job(id: str, request: Request) -> dict[str, Any]:
    """Where a job stands, with the addresses of its pictures."""
    service: Service = request.app.state.service
    found = _job(service, id, request)
    found.fetched = found.fetched or found.ended
    return described(service, found)


@router.delete("/jobs/{id}")
async def cancel(id: str, request: Request) -> dict[str, Any]:
    """Cancel a job, or forget one that has ended."""
    service: Service = request.app.state.service
    found = _job(service, id, request)
    if found.ended:
        service.jobs.drop(found)
    service.jobs.cancel(found)
    found.fetched = True
    return described(service, found)


@router.get("/pictures/{name}", response_class=Response)
async def picture(name: str, request: Request) -> Response:
    """A finished picture, for as long as the server keeps it. Its name is the only key to it."""
    service: Service = request.app.state.service
    found = service.jobs.picture(name.partition(".")[0])
    if found is None or found[1].data is None or name != file_name(*found):
        raise Denied(404, "that picture is not, or no longer, kept here")
    headers = {"Cache-Control": "private, max-age=600", "Content-Disposition": f'inline; filename="{name}"'}
    return Response(found[1].data, media_type=f"image/{found[0].format}", headers=headers)


@router.get("/about")
async def about(request: Request) -> dict[str, Any]:
    """What this server draws with, and its limits: what a page needs to know."""
    service: Service = request.app.state.service
    service.client(request)
    return service.about()


def _job(service: Service, id: str, request: Request) -> Job:
    found = service.jobs.get(id, service.client(request))
    if found is None:
        raise Denied(404, "there is no such job, or it is no longer kept")
    return found


def _answer(service: Service, prepared: Prepared, client: str, kind: str, stream: bool) -> Response:
    job = service.submit(prepared, client, kind, previews=stream)
    if stream:
        return EventStream(_events(service, job), lambda: service.jobs.left(job))
    return JSONResponse(described(service, job), 202, {"Location": f"/api/jobs/{job.id}"})


async def _events(service: Service, job: Job) -> AsyncIterator[tuple[None, Any]]:
    yield None, {"type": "job", **described(service, job)}
    shown = dict.fromkeys(job.pictures, 0)
    told: set[Picture] = set()
    position = -1
    async for changed in changes(job):
        if not changed:
            yield None, None
        if job.state == "queued" and (now := service.jobs.position(job)) != position:
            position = now
            yield None, {"type": "queued", "position": position}
        for picture in job.pictures:
            if picture.ended and picture not in told:
                told.add(picture)
                yield None, {"type": "picture", **about_picture(job, picture)}
            elif picture.state == "running" and picture.shown > shown[picture] and picture.preview is not None:
                shown[picture] = picture.shown
                value = {"type": "preview", **about_picture(job, picture)}
                value["preview"] = await asyncio.to_thread(_preview, picture.preview)
                yield None, value
    yield None, {"type": "end", "state": job.state, "error": job.error}


def _preview(image: Any) -> str:
    small = image
    if max(image.size) > PREVIEW_SIDE:
        small = image.copy()
        small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return f"data:image/jpeg;base64,{to_base64(encoded(small, 'jpeg', quality=85))}"


def described(service: Service, job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "created": int(job.created),
        "position": service.jobs.position(job) if job.state == "queued" else 0,
        "error": job.error,
        "pictures": [about_picture(job, picture) for picture in job.pictures],
    }


def about_picture(job: Job, picture: Picture) -> dict[str, Any]:
    done = picture.state == "done"
    seed = picture.seed
    return {
        "number": picture.number,
        "state": picture.state,
        "seed": seed if isinstance(seed, int) else seed.other,
        "resolution": picture.resolution,
        "progress": 1.0 if done else round(picture.done / picture.total, 3),
        "error": picture.error,
        "command": picture.command,
        "width": picture.size[0],
        "height": picture.size[1],
        "url": f"/api/pictures/{file_name(job, picture)}" if done else None,
    }


def file_name(job: Job, picture: Picture) -> str:
    return f"{picture.id}.{job.format}"


def _given(asked: Asked, most: int) -> Given:
    """The pictures of a JSON request."""

    def of(name: str) -> bytes | None:
        text = getattr(asked, name)
        return None if text is None else from_base64(text, name)

    init, mask, start = of("init"), of("mask"), of("start")
    return Given(
        init=None if init is None else decoded(init, "init", most),
        mask=None if mask is None else mask_of(mask, "mask", most),
        start=None if start is None else decoded(start, "start", most),
    )


async def form_of(request: Request, files: set[str]) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """The fields and the files of a form. Raises UserError for what should not be in it."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UserError("send a form (multipart/form-data)")
    fields: dict[str, str] = {}
    found: dict[str, list[bytes]] = {}
    async with request.form(max_files=20, max_fields=50) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in files:
                    raise UserError(f"unknown file {name[:60]!r}; this takes {', '.join(sorted(files))}")
                found.setdefault(name.removesuffix("[]"), []).append(await value.read())
            elif name in fields:
                raise UserError(f"{name[:60]} is given twice")
            else:
                fields[name] = value
    return fields, found


def checked(model: Any, fields: dict[str, Any]) -> Any:
    """Fields of a form as a model. Raises UserError."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UserError(sentence(error.errors())[0]) from None
