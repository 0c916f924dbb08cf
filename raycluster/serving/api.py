"""The HTTP API: its routes and their replies. It uses FastAPI without Ray; :mod:`raycluster.serving.app` puts it on Serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from raycluster.serving import openapi, web_page
from raycluster.serving import requests as intake
from raycluster.serving import schemas as wire
from raycluster.serving.live_model import describe_encoder
from raycluster.serving.middleware import VERSION_HEADER, Guard
from raycluster.serving.requests import Refused
from raycluster.serving.service import Service

PAGE_LIMIT = 1000
"""Maximum number of clusters on one page of `/v1/clusters`."""

Observer = Callable[[str, int, float, list[str]], None]
"""Called for each answered request with route, status, seconds, and for each item `ok` or the error's code."""


def create_app(service: Service, metrics: Callable[[], Awaitable[str]], observe: Observer) -> FastAPI:
    """Return the app with the whole API. `metrics` returns the Prometheus text for `/metrics`."""
    app = FastAPI(
        title="raycluster",
        version="1",
        docs_url=None,
        redoc_url=None,
        description="Assigns pictures to the clusters of a run.",
    )
    _add_assign(app, service, observe)
    _add_clusters(app, service)
    _add_state(app, service, metrics)
    _add_errors(app, service)
    app.add_middleware(
        Guard,
        tokens=service.tokens,
        hosts=service.settings.allowed_hosts,
        version=lambda: service.version,
        refuse=lambda refused: _refusal(service, refused),
    )
    openapi.describe(app, service.limits, bool(service.tokens))
    return app


def _add_assign(app: FastAPI, service: Service, observe: Observer) -> None:
    limits, version_of = service.limits, wire.ModelVersion

    async def answer(
        request: Request, response: Response, work: Callable[[bytes], Awaitable[tuple[str, list[wire.Assignment]]]]
    ) -> wire.AssignReply:
        """Read the body, run `work` on it, and report the result to `observe`."""
        route, started, status, codes = request.url.path, time.monotonic(), 500, list[str]()
        try:
            with service.gate.admit_bytes() as holding:
                body = await intake.read_body(request, limits, holding)
                version, items = await work(body)
            codes, status = [item.error.code if item.error else "ok" for item in items], 200
        except Refused as refused:
            status = refused.status
            raise
        except asyncio.CancelledError:  # the client hung up
            status = 499
            raise
        finally:
            observe(route, status, time.monotonic() - started, codes)
        response.headers[VERSION_HEADER] = version
        return wire.AssignReply(model=version_of(version=version), items=items)

    @app.post("/v1/assign", response_model=wire.AssignReply, operation_id="assign")
    async def assign(request: Request, response: Response) -> wire.AssignReply:
        """Assign pictures to clusters. Send a form with `files`, or JSON. A picture that cannot be used gets its own error."""
        kind = intake.media_type(request, "multipart/form-data", "application/json")

        async def work(body: bytes) -> tuple[str, list[wire.Assignment]]:
            if kind == "application/json":
                parsed = intake.parse_json(body, wire.AssignRequest, limits.max_items, limits.max_top_k)
                assert isinstance(parsed, wire.AssignRequest)
                return await service.assign_pictures(intake.pictures_of(parsed, limits.max_image_bytes), parsed.top_k)
            pictures, top_k = await intake.parse_multipart(request.headers["content-type"], body, limits)
            return await service.assign_pictures(pictures, top_k)

        return await answer(request, response, work)

    @app.post("/v1/assign/embeddings", response_model=wire.AssignReply, operation_id="assign_embeddings")
    async def assign_embeddings(request: Request, response: Response) -> wire.AssignReply:
        """Assign ready-made embeddings to clusters. They must come from the model's encoder."""
        intake.media_type(request, "application/json")

        async def work(body: bytes) -> tuple[str, list[wire.Assignment]]:
            parsed = intake.parse_json(body, wire.EmbeddingsRequest, limits.max_embeddings, limits.max_top_k)
            assert isinstance(parsed, wire.EmbeddingsRequest)
            return await service.assign_embeddings(parsed.items, parsed.top_k)

        return await answer(request, response, work)


def _add_clusters(app: FastAPI, service: Service) -> None:
    @app.get("/v1/clusters", response_model=wire.ClustersReply, operation_id="clusters")
    async def clusters(
        response: Response,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
        limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 100,
    ) -> wire.ClustersReply:
        """Return one page of the clusters."""
        version, rows, total = await service.clusters(offset, offset + limit)
        response.headers[VERSION_HEADER] = version
        summaries = [wire.ClusterSummary.model_validate(row) for row in rows]
        return wire.ClustersReply(
            model=wire.ModelVersion(version=version), total=total, offset=offset, limit=limit, clusters=summaries
        )

    @app.get("/v1/clusters/{cluster}", response_model=wire.ClusterReply, operation_id="cluster")
    async def cluster(response: Response, cluster: Annotated[int, Path(ge=0, le=2**31)]) -> wire.ClusterReply:
        """Return one cluster with its most typical images."""
        version, rows, total = await service.clusters(cluster, cluster + 1)
        if not rows:
            raise Refused(
                404, "no_such_cluster", f"there is no cluster {cluster}; there are {total} clusters, numbered from 0"
            )
        response.headers[VERSION_HEADER] = version
        shown = {"model": wire.ModelVersion(version=version), "exemplars": await service.exemplars(version, rows[0])}
        return wire.ClusterReply.model_validate({**rows[0], **shown})


def _add_state(app: FastAPI, service: Service, metrics: Callable[[], Awaitable[str]]) -> None:
    @app.get("/v1/model", response_model=wire.ModelReply, operation_id="model")
    async def model(response: Response) -> wire.ModelReply:
        """Return the model in use, and the newest model that was refused."""
        info = await service.model_info(fresh=True)
        response.headers[VERSION_HEADER] = info.version
        limits = {key: value for key, value in service.limits.model_dump().items() if not key.startswith("max_waiting")}
        return wire.ModelReply(
            model=wire.ModelVersion(version=info.version),
            folder=info.folder,
            method=info.method,
            n_clusters=info.n_clusters,
            dim=info.dim,
            takes_pictures=info.spec is not None,
            encoder=describe_encoder(info),
            device=info.device,
            loaded=info.loaded,
            refused=None if info.refused is None else wire.Refusal.model_validate(info.refused),
            limits=limits,
        )

    @app.get("/healthz", response_model=wire.HealthReply, operation_id="healthz")
    async def healthz() -> wire.HealthReply:
        """Tell whether the process answers."""
        return wire.HealthReply(status="ok", model=wire.ModelVersion(version=service.version))

    @app.get("/readyz", response_model=wire.HealthReply, operation_id="readyz")
    async def readyz() -> wire.HealthReply:
        """Tell whether a model is loaded and answers; 503 if not."""
        info = await service.model_info(fresh=True)
        return wire.HealthReply(status="ok", model=wire.ModelVersion(version=info.version))

    @app.get("/metrics", response_class=PlainTextResponse, operation_id="metrics")
    async def prometheus() -> PlainTextResponse:
        """Return the metrics of all replicas in Prometheus' text format, a few seconds old."""
        return PlainTextResponse(await metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(web_page.HTML, headers={"content-security-policy": web_page.POLICY})


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _refusal(service, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5])
        return _refusal(service, Refused(422, "invalid", faults))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        # Serve logs the traceback. The client learns only the type of the error, because details are not meant for outsiders.
        return _refusal(
            service, Refused(500, "internal", f"the server failed with {type(error).__name__}; its log says why")
        )

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        return _refusal(service, Refused(error.status_code, code, str(error.detail), dict(error.headers or {})))


def _refusal(service: Service, refused: Refused) -> JSONResponse:
    body: Any = wire.ErrorReply(
        model=wire.ModelVersion(version=service.version),
        error=wire.Problem(code=refused.code, message=refused.message),
    ).model_dump()
    return JSONResponse(body, refused.status, headers=refused.headers)
