"""The application: its paths, and what they share.

Service (models with their engines, processes that open files, keys, metrics) ──make_app──> Admission(FastAPI)
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from pumice.serve.admission import Admission, Note
from pumice.serve.answers import Answers, Prompt, Served, find_model, prepare
from pumice.serve.chat import ChatAnswer
from pumice.serve.errors import ApiError, from_error
from pumice.serve.evidence import Finder, with_answer
from pumice.serve.fetch import Fetcher
from pumice.serve.keys import Keys
from pumice.serve.log import Log
from pumice.serve.media import Opener
from pumice.serve.metrics import Metrics
from pumice.serve.openapi import describe, errors_of
from pumice.serve.parts import Said, read_messages
from pumice.serve.responses import ResponseAnswer, messages_of, own_names
from pumice.serve.schemas import (
    ChatRequest,
    CountRequest,
    EvidenceRequest,
    PreviewRequest,
    ResponseRequest,
    chat_sampling,
    read_body,
    response_sampling,
)
from pumice.serve.settings import ServeSettings
from pumice.serve.tiling import previews_json, tiling_json
from pumice.serve.workers import DecodePool

WEB = Path(__file__).parent / "web"


class Service:
    """Everything that requests share."""

    def __init__(self, models: dict[str, Served], settings: ServeSettings, fetcher: Fetcher | None = None) -> None:
        self.models, self.settings = models, settings
        self.metrics = Metrics()
        reader = any(model.reader is not None for model in models.values())
        self.pool = DecodePool({name: model.processor for name, model in models.items()}, settings, reader)
        self.opener = Opener(self.pool, fetcher or Fetcher(settings.remote), settings)
        self.finder = Finder(self.opener)
        self.threads = ThreadPoolExecutor(8, "submit")
        self.metrics.watch(
            lambda: {name: model.engine.stats() for name, model in models.items()}, lambda: self.pool.lost
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """From the first process to the last answer. All of it happens on the loop that this is run on."""
        self.loop = asyncio.get_running_loop()
        await self.pool.start()
        try:
            yield
        finally:
            for model in self.models.values():
                await asyncio.to_thread(model.engine.close, False)
            await self.pool.close()
            self.finder.close()
            self.threads.shutdown(wait=False)

    def space(self, note: Note) -> str:
        """What tells apart the caches of callers."""
        return "" if self.settings.share_cache else note.caller.space

    async def prompt(self, name: str, said: list[Said], note: Note) -> Prompt:
        """A request's messages, opened and laid out."""
        prompt = await prepare(find_model(self.models, name), said, self.opener, self.space(note))
        prompt.began = note.began
        note.figures |= {"model": name, "prompt_tokens": len(prompt.laid.ids), "visual_tokens": prompt.laid.visual}
        return prompt


def make_app(service: Service, keys: Keys, log: Log | None = None, web: Path = WEB) -> Admission:
    """The ASGI application of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="Pumice", docs_url=None, redoc_url=None, lifespan=lifespan)
    admission = Admission(app, service.settings, keys, service.metrics, log or Log())
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _refuse)
    _add_answers(app, service)
    _add_state(app, service, admission)
    pages = _add_pages(app, web) if web.is_dir() else []
    describe(app)
    admission.paths = frozenset([*app.openapi()["paths"], *pages])
    return admission


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        known = {404: ("not_found", "no such path"), 405: ("method_not_allowed", "this path has another method")}
        code, message = known.get(error.status_code, (None, "the request can't be answered"))
        said = ApiError(error.status_code, code, message)
        return JSONResponse(said.to_json(), said.status, headers=dict(error.headers or {}))
    said = from_error(error)
    return JSONResponse(said.to_json(), said.status, headers=said.headers())


def _add_answers(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.post("/v1/chat/completions", **errors_of(ChatRequest, stream=True))
    async def chat(request: Request) -> Response:
        note, ask = request.scope["note"], read_body(await request.body(), ChatRequest)
        sampling = chat_sampling(ask, settings)
        said = read_messages(ask.messages, settings.media, settings.max_media)
        prompt = await service.prompt(ask.model, said, note)
        answers = Answers(prompt, sampling, ask.n or 1, service.opener, service.metrics)
        wants_usage = bool(ask.stream_options and ask.stream_options.include_usage)
        return await _respond(service, note, answers, ChatAnswer(answers, bool(ask.logprobs), wants_usage), ask.stream)

    @app.post("/v1/responses", **errors_of(ResponseRequest, stream=True))
    async def responses(request: Request) -> Response:
        note, ask = request.scope["note"], read_body(await request.body(), ResponseRequest)
        with own_names():
            sampling = response_sampling(ask, settings)
            said = read_messages(messages_of(ask), settings.media, settings.max_media, "input")
            if ask.instructions:
                said.insert(0, Said("system", (ask.instructions,)))
            answers = Answers(await service.prompt(ask.model, said, note), sampling, 1, service.opener, service.metrics)
            made = ResponseAnswer(answers, ask, sampling.logprobs is not None)
            return await _respond(service, note, answers, made, ask.stream)

    @app.post("/tokenize", **errors_of(CountRequest))
    async def tokenize(request: Request) -> Response:
        note, ask = request.scope["note"], read_body(await request.body(), CountRequest)
        said = read_messages(ask.messages, settings.media, settings.max_media)
        return JSONResponse(tiling_json(await service.prompt(ask.model, said, note)))

    @app.post("/v1/previews", **errors_of(PreviewRequest))
    async def previews(request: Request) -> Response:
        note, ask = request.scope["note"], read_body(await request.body(), PreviewRequest)
        said = read_messages(ask.messages, settings.media, settings.max_media)
        space = service.space(note)
        opened = await service.opener.open_sample(said, space)
        return JSONResponse(previews_json(await service.opener.previews(opened, space)))

    @app.post("/v1/evidence", **errors_of(EvidenceRequest))
    async def evidence(request: Request) -> Response:
        note, ask = request.scope["note"], read_body(await request.body(), EvidenceRequest)
        said = with_answer(read_messages(ask.messages, settings.media, settings.max_media), ask.answer)
        return JSONResponse(await service.finder.find(await service.prompt(ask.model, said, note)))


async def _respond(
    service: Service, note: Note, answers: Answers, made: ChatAnswer | ResponseAnswer, stream: bool | None
) -> Response:
    """The answer whole, or as a stream once its first piece is there: what goes wrong before has its own status."""
    note.ending.callback(answers.close)
    await answers.start(service.threads)
    events = _noted(answers, note)
    if not stream:
        return JSONResponse(await made.whole(events))
    first = await anext(events)

    async def all_events() -> AsyncIterator[Any]:
        yield first
        async for event in events:
            yield event

    return StreamingResponse(made.stream(all_events()), media_type="text/event-stream")


async def _noted(answers: Answers, note: Note) -> AsyncIterator[Any]:
    """The events, and their figures for the log in the end."""
    async with contextlib.aclosing(answers.events()) as events:
        async for event in events:
            yield event
    finish = ",".join(sorted({outcome.finish for outcome in answers.outcomes.values()}))
    note.figures |= answers.usage() | {"finish": finish, "first_ms": round(answers.outcomes[0].first_ms, 1)}


def _add_state(app: FastAPI, service: Service, admission: Admission) -> None:
    @app.get("/v1/models", **errors_of())
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_json(model) for model in service.models.values()]}

    @app.get("/v1/models/{name:path}", **errors_of())
    async def model(name: str) -> dict[str, Any]:
        return _model_json(find_model(service.models, name))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "Stopping."}})
    async def ready() -> JSONResponse:
        status = "draining" if admission.draining else "ready"
        return JSONResponse({"status": status, "models": list(service.models)}, 200 if status == "ready" else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _model_json(model: Served) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "pumice",
        "max_tokens": model.limit,
        "media": ["image", "page", "video"],
        "evidence": True,
        "reader": model.reader is not None,
    }


def _add_pages(app: FastAPI, web: Path) -> list[str]:
    """A path for each file that the package has, and for no other: no path of a request is ever looked up on disk."""
    files = {f"/{file.relative_to(web).as_posix()}": file for file in sorted(web.rglob("*")) if file.is_file()}
    if web / "index.html" in files.values():
        files["/"] = web / "index.html"
    for path, file in files.items():
        app.add_api_route(path, _page(file), methods=["GET", "HEAD"], include_in_schema=False)
    return list(files)


def _page(file: Path) -> Callable[[], Any]:
    kind = {".js": "text/javascript", ".html": "text/html"}.get(file.suffix) or mimetypes.guess_type(file.name)[0]

    async def page() -> Response:
        headers = {"cache-control": "no-cache"}
        return Response(file.read_bytes(), media_type=kind or "application/octet-stream", headers=headers)

    return page
