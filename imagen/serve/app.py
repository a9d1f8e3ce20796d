"""Create the ASGI application: routes, page, health checks, metrics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.middleware.cors import CORSMiddleware

from imagen.serve import api, openai_api
from imagen.serve.access import Access
from imagen.serve.config import ServeConfig
from imagen.serve.engine import Engine
from imagen.serve.errors import add_handlers
from imagen.serve.guard import Guard
from imagen.serve.metrics import Metrics
from imagen.serve.service import Service
from imagen.version import __version__

PAGE = Path(str(files("imagen.serve"))) / "page"
ABOUT = (
    "Images from prompts. /v1 is OpenAI's image API; /api has all sampling options. "
    "If the server requires a key, send the header Authorization: Bearer KEY."
)


def create_app(engines: list[Engine], config: ServeConfig, metrics: Metrics) -> FastAPI:
    """Return the application. engines: already started; the application stops them at shutdown."""

    access = Access(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = Service(engines, config, metrics, access)
        yield
        app.state.service.close()

    app = FastAPI(
        title="imagen",
        version=__version__,
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from other hosts; ours is page/docs.html
        redoc_url=None,
    )
    add_handlers(app)
    app.include_router(openai_api.router)
    app.include_router(api.router)
    _add_health(app)
    _add_page(app)
    if config.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors), allow_methods=["*"], allow_headers=["*"], max_age=600
        )
    app.add_middleware(Guard, access=access, limits=config.limits, metrics=metrics)  # added last: the outermost
    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz", tags=["operation"], response_class=PlainTextResponse)
    async def healthz(request: Request) -> Response:
        """Return 200 while every engine can sample; 503 if the process has to be restarted."""
        service: Service = request.app.state.service
        if not service.healthy:
            return PlainTextResponse("an engine has failed; see the server's log\n", 503)
        return PlainTextResponse("ok\n")

    @app.get("/readyz", tags=["operation"])
    async def readyz(request: Request) -> Response:
        """Return 200 while requests are accepted: after the warm-up and before the shutdown."""
        service: Service = request.app.state.service
        if service.jobs.draining:
            return JSONResponse({"ready": False, "why": "shutting down"}, 503)
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Return metrics for Prometheus. If the server has keys, one is required."""
        service: Service = request.app.state.service
        service.client(request)
        service.jobs.measure()
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    known = {path.name: path for path in PAGE.iterdir() if path.suffix in kinds}

    def file(name: str) -> Response:
        path = known[name]
        return FileResponse(path, media_type=kinds[path.suffix], headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return file("docs.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in known:  # only listed names are opened, never a path from the request
            return PlainTextResponse("there is nothing at this address\n", 404)
        return file(name)
