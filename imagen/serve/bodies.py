"""What a request's body passes before it is parsed: its sender may ask, and it is small enough to be taken apart."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from imagen.errors import UserError
from imagen.serve.service import Service

MOST_PARTS = 2_000  # of JSON, beside the commas of prompts: fields, and values of lists


class Route(APIRoute):
    """A route that asks for the key before it reads a body, and refuses JSON of very many parts.

    A body within the limit of bytes can have millions of unknown fields, and each would become an error of its own: a
    gigabyte, and seconds in which nobody else is answered. Pictures in base64 have no commas.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            service: Service = request.app.state.service
            if request.method == "POST":
                service.client(request)
                if not request.headers.get("content-type", "").lower().startswith("multipart/"):
                    parts = (await request.body()).count(b",")
                    if parts > MOST_PARTS + 2 * service.config.limits.prompt:
                        raise UserError(f"the body is JSON of more than {parts:,} parts, which no request has")
            return await handle(request)

        return checked
