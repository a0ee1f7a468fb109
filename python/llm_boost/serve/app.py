"""The ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from llm_boost import __version__
from llm_boost._json import parse_json_object
from llm_boost.errors import RequestError
from llm_boost.model import Model
from llm_boost.serve.admission import Admission
from llm_boost.serve.calls import Call
from llm_boost.serve.chat import ChatCall
from llm_boost.serve.completions import CompletionCall
from llm_boost.serve.engine import AsyncEngine, Generation
from llm_boost.serve.errors import ApiError, as_api_error
from llm_boost.serve.generate import GenerateCall
from llm_boost.serve.metrics import Metrics
from llm_boost.serve.middleware import Guard, GuardMiddleware, HostGuard, KeyGuard, RequestLog
from llm_boost.serve.page import chat_page
from llm_boost.serve.refusal import Refusals
from llm_boost.serve.settings import ServerSettings
from llm_boost.serve.streaming import PING, EventStream, error_response, event, json_response, wait_for_disconnect
from llm_boost.serve.tokens import detokenize, tokenize

_log = logging.getLogger("llm_boost.serve")
_Result = TypeVar("_Result")
# Rendering, tokenizing and compiling grammars: most of that is done without the interpreter's lock, or elsewhere.
_NUM_WORKERS = 4
_SMALL_BODY = 1 << 14  # parsing so many bytes takes less time than going to a worker thread and back

Parse = Callable[[Mapping[str, Any], Model, ServerSettings], Call]


def create_app(model: Model, settings: ServerSettings) -> Starlette:
    """The application that serves a model; any ASGI server runs it.

    Example:
        >>> app = create_app(model, ServerSettings(served_model_names=("my-model",)))  # doctest: +SKIP
        >>> uvicorn.run(app)  # doctest: +SKIP
    """
    server = Server(model, settings)
    chat = server.generating(ChatCall.from_body)
    completions = server.generating(CompletionCall.from_body)
    routes = [
        Route("/", server.page),
        Route("/health", server.health),
        Route("/version", server.version),
        Route("/metrics", server.metrics_page),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.model_card),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/tokenize", server.computing(tokenize), methods=["POST"]),
        Route("/detokenize", server.computing(detokenize), methods=["POST"]),
        Route("/generate", server.generating(GenerateCall.from_body), methods=["POST"]),
        Route(
            "/generate_stream",
            server.generating(functools.partial(GenerateCall.from_body, streams=True)),
            methods=["POST"],
        ),
    ]
    guards: list[Guard] = []
    middleware = [Middleware(RequestLog)]
    if settings.allowed_hosts:
        guards.append(HostGuard(settings.allowed_hosts))
        middleware.append(Middleware(GuardMiddleware, guard=guards[-1]))
    if settings.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allowed_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        )
    if settings.api_key is not None:
        guards.append(KeyGuard(settings.api_key, public=["/health"]))
        middleware.append(Middleware(GuardMiddleware, guard=guards[-1]))
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: _http_error, Exception: _any_error},
        lifespan=server.lifespan,
    )
    app.state.server = server
    limited = [route.path for route in routes if "POST" in (route.methods or ())]
    app.state.refusals = Refusals(server.admission, limited, guards, server.metrics.observe_rejection)
    return app


class Server:
    """What the routes share. Belongs to the event loop."""

    def __init__(self, model: Model, settings: ServerSettings) -> None:
        """Takes a loaded model, which stays the caller's."""
        info = model.info()
        self.model = model
        self.settings = settings
        self.metrics = Metrics(settings.metrics_prefix, settings.served_model_names[0], info)
        self.engine = AsyncEngine(model, self.metrics)
        self.admission = Admission(info.max_num_seqs, settings.max_queue, settings.retry_after_seconds)
        self.draining = False
        self._max_model_len = info.max_model_len
        self._workers = ThreadPoolExecutor(_NUM_WORKERS, thread_name_prefix="llm-boost-worker")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs the engine's pump while the application runs."""
        self.engine.start()
        try:
            yield
        finally:
            self.draining = True
            await asyncio.to_thread(self.engine.close)
            self._workers.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Refuses new requests from now on; those under way end with an error after `drain_seconds`."""
        self.draining = True
        asyncio.get_running_loop().call_later(self.settings.drain_seconds, self.abort)

    def abort(self) -> None:
        """Ends requests that are under way with an error."""
        self.engine.abort_all(_shutting_down())

    # -- Routes that generate --------------------------------------------------------------------------------------

    def generating(self, parse: Parse) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a route that generates, from what parses its bodies."""

        async def endpoint(request: Request) -> Response:
            try:
                self._require_room()
                data = await self._read(request)

                def parsed() -> tuple[dict[str, Any], Call]:
                    body = parse_json_object(data, "the body", RequestError)
                    call = parse(body, self.model, self.settings)
                    self._check_model(body.get("model"))
                    return body, call

                body, call = parsed() if len(data) <= _SMALL_BODY else await self.in_worker(parsed)
                return await self._answer(request, call, body)
            except Exception as error:  # noqa: BLE001  # all errors become answers
                return _error_answer(error)

        return endpoint

    def _require_room(self) -> None:
        if self.draining:
            raise _shutting_down()
        try:
            self.admission.require_room()
        except ApiError:
            self.metrics.observe_rejection()
            raise

    async def _answer(self, request: Request, call: Call, body: Mapping[str, Any]) -> Response:
        count = call.num_prompts * call.params.n
        try:
            self.admission.admit(count)
        except ApiError as error:
            if error.status == 429:
                self.metrics.observe_rejection()
            raise
        lease = _Lease(self, count)
        try:
            generation = await self._unless_disconnected(request, self._begin(call, lease))
            self._note(request, generation, body)
            if call.streams:
                return self._stream(call, generation, lease)
            await self._unless_disconnected(request, generation.finish())
            response = await asyncio.to_thread(self._response, call, generation)
        except BaseException:
            lease.end()
            raise
        lease.end()
        return response

    def _response(self, call: Call, generation: Generation) -> Response:
        outputs = [running.result(str(index)) for index, running in enumerate(generation.requests)]
        return json_response(call.response(self.model, outputs))

    async def _begin(self, call: Call, lease: _Lease) -> Generation:
        """Encodes prompts and submits them, off the event loop."""

        def begin() -> Generation:
            prompts = call.encode(self.model)
            requests = [self.model.new_request(p.token_ids, call.params, text=p.text) for p in prompts]
            generation = Generation(requests, streams=call.streams)
            lease.generation = generation
            if not lease.ended:
                self.engine.submit(generation)
            return generation

        return await self.in_worker(begin)

    def _stream(self, call: Call, generation: Generation, lease: _Lease) -> EventStream:
        async def chunks() -> AsyncIterator[bytes]:
            writer = call.writer(self.model)
            try:
                async for pieces in generation.batches():
                    if not pieces:
                        yield PING
                        continue
                    events = [writer.piece(index, generation.requests[index], piece) for index, piece in pieces]
                    if data := b"".join(event(e) for e in events if e is not None):
                        yield data
                yield b"".join(map(event, writer.end(generation.requests))) + writer.terminator
            finally:
                lease.end()

        return EventStream(
            chunks(), on_disconnect=lease.end, on_idle=generation.poke, idle_seconds=self.settings.ping_seconds
        )

    def _note(self, request: Request, generation: Generation, body: Mapping[str, Any]) -> None:
        """Adds to the request's log line."""
        facts = request.scope["state"]["facts"]
        facts["prompt_tokens"] = sum(len(running.prompt_token_ids) for running in generation.requests)
        if self.settings.log_prompts:
            facts["prompt"] = [body.get(name) for name in ("prompt", "messages", "inputs") if name in body]

    async def _unless_disconnected(self, request: Request, work: Awaitable[_Result]) -> _Result:
        """The result of `work`, unless the client goes first.

        Raises:
            ApiError: It did.
        """
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(wait_for_disconnect(request.receive))
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _client_gone()
        finally:
            task.cancel()
            watch.cancel()

    # -- Other routes ----------------------------------------------------------------------------------------------

    def computing(
        self, compute: Callable[[Mapping[str, Any], Model], dict[str, Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a route that computes its answer from a body, off the event loop."""

        async def endpoint(request: Request) -> Response:
            try:
                self._require_room()
                data = await self._read(request)

                def computed() -> Response:
                    body = parse_json_object(data, "the body", RequestError)
                    self._check_model(body.get("model"))
                    return json_response(compute(body, self.model))

                return await self.in_worker(computed)
            except Exception as error:  # noqa: BLE001  # all errors become answers
                return _error_answer(error)

        return endpoint

    async def page(self, request: Request) -> Response:
        """The chat page."""
        page = chat_page()
        return Response(page.body, headers=page.headers)

    async def health(self, request: Request) -> Response:
        """200 while the engine serves, 503 otherwise."""
        healthy = self.engine.alive and not self.draining
        return json_response({"status": "ok" if healthy else "unavailable"}, 200 if healthy else 503)

    async def version(self, request: Request) -> Response:
        """The version of llm_boost."""
        return json_response({"version": __version__})

    async def metrics_page(self, request: Request) -> Response:
        """What Prometheus reads."""
        text = await asyncio.to_thread(lambda: self.metrics.text(self.model.stats()))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """The model, under all its names."""
        return json_response({"object": "list", "data": [self._card(n) for n in self.settings.served_model_names]})

    async def model_card(self, request: Request) -> Response:
        """The model, under one of its names."""
        name = request.path_params["name"]
        try:
            self._check_model(name)
        except ApiError as error:
            return error_response(error)
        return json_response(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "llm_boost",
            "root": self.settings.served_model_names[0],
            "max_model_len": self._max_model_len,
        }

    # -- Bodies ----------------------------------------------------------------------------------------------------

    async def _read(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
            ApiError: It is not JSON by its header, or too large, or the client went before it had sent it.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            # Pages of other sites can send the few other types without asking (CSRF).
            raise ApiError(415, "the Content-Type is not application/json")
        limit = self.settings.max_body_bytes
        too_large = ApiError(
            413, f"the body has more than {limit} bytes", code="body_too_large", headers={"Connection": "close"}
        )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        data = bytearray()
        try:
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise too_large
        except ClientDisconnect:
            raise _client_gone() from None
        return bytes(data)

    def _check_model(self, name: object) -> None:
        names: Sequence[str] = self.settings.served_model_names
        if name is not None and name not in names:
            raise ApiError(
                404,
                f"the model {ascii(name)[:80]} is not served here; known: {', '.join(names)}",
                param="model",
                code="model_not_found",
            )

    async def in_worker(self, work: Callable[[], _Result]) -> _Result:
        """Does work on a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


class _Lease:
    """Room that a request has taken, and what it has in the engine; ended once."""

    def __init__(self, server: Server, count: int) -> None:
        self._server = server
        self._count = count
        self.generation: Generation | None = None
        self.ended = False

    def end(self) -> None:
        """Cancels what has not finished, and gives the room back."""
        if self.ended:
            return
        self.ended = True
        if self.generation is not None:
            self._server.engine.close_generation(self.generation)
        self._server.admission.release(self._count)


def _shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down")


def _client_gone() -> ApiError:
    """For the log: nobody will read it."""
    return ApiError(499, "the client closed the connection")


def _error_answer(error: Exception) -> Response:
    api_error = as_api_error(error)
    if api_error.status >= 500 and not isinstance(error, ApiError):
        _log.error("failure", exc_info=error)
    return error_response(api_error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: f"there is no {request.url.path[:100]} here", 405: f"{request.method} is not allowed here"}
    text = message.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, text, headers=dict(error.headers or {})))


async def _any_error(request: Request, error: Exception) -> Response:
    return error_response(as_api_error(error))
