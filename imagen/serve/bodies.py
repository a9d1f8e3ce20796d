"""Check a request body before it is parsed."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from imagen.errors import UserError
from imagen.serve.service import Service

MAX_PARTS = 2_000  # fields and list values of JSON, besides the commas of prompts


class Route(APIRoute):
    """A route that checks the key before it reads a body, and rejects JSON with very many parts.

    A body within the limit of bytes can have millions of unknown fields, and pydantic creates an error for each: a
    gigabyte, and seconds during which no other request is answered. Images in base64 contain no commas.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            service: Service = request.app.state.service
            if request.method == "POST":
                service.client(request)
                if not request.headers.get("content-type", "").lower().startswith("multipart/"):
                    parts = (await request.body()).count(b",")
                    if parts > MAX_PARTS + 2 * service.config.limits.prompt:
                        raise UserError(f"the JSON body has more than {parts:,} parts; a valid request has fewer")
            return await handle(request)

        return checked
