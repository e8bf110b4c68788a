"""The web application: which path does what."""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stepaudio_jax.inference import Engine
from stepaudio_jax.serving import chat, completions, errors, transcriptions
from stepaudio_jax.serving.exchange import Exchange
from stepaudio_jax.serving.metrics import Measured
from stepaudio_jax.serving.service import Service
from stepaudio_jax.serving.settings import Settings


def create_app(engine: Engine, settings: Settings | None = None) -> FastAPI:
    """A server of one engine, which it runs while the application does.

    `app.state.runner` and `app.state.service` are there for whatever else is mounted into it.
    """
    service = Service(engine, settings or Settings())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        service.runner.start()
        try:
            yield
        finally:
            await service.close()

    # Without FastAPI's pages: they load scripts from elsewhere, and our bodies are read by hand.
    app = FastAPI(title="stepaudio", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service, app.state.runner = service, service.runner
    app.add_middleware(Measured, metrics=service.metrics)
    errors.install(app)
    app.include_router(_routes(service))
    return app


def _routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        return Exchange(service, chat.read, chat.respond)

    @router.post("/v1/completions")
    async def text_completions() -> Response:
        return Exchange(service, completions.read, completions.respond)

    @router.post("/v1/audio/transcriptions")
    async def audio_transcriptions() -> Response:
        return Exchange(service, transcriptions.read, transcriptions.respond)

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        service.check_key(request)
        return {"object": "list", "data": [_model(service, name) for name in service.settings.model_names]}

    @router.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        service.check_key(request)
        service.check_model(name)
        return _model(service, name)

    @router.get("/health")
    async def health() -> Response:
        status = "draining" if service.runner.draining else "ok" if service.runner.alive else "the engine has died"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.check_key(request)
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "stepaudio",
        "max_model_len": service.positions,
    }
