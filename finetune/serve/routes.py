"""The routes of the service."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from finetune.importing import require
from finetune.predict import Predictors
from finetune.serve.asked_samples import (
    AskedSamples,
    check_count,
    from_file,
    kinds_of,
    names_asked,
    read_json_request,
)
from finetune.serve.counters import Counters
from finetune.serve.doorman import Doorman
from finetune.serve.openapi_page import files_schema, page, request_schema
from finetune.serve.refusal import Refusal, ServiceLimits, safe_json
from finetune.serve.request_queue import RequestQueue
from finetune.train.after.trained import TrainedRun

_FILES = "/predict/files"
_NO_JSON = f"send the header content-type: application/json; files go to {_FILES}"
_PAGE_RULES = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_REFUSALS = {
    "400": "not readable: not JSON, not UTF-8, NaN",
    "403": "asked by the page of another site",
    "404": "no such run",
    "408": "the body came too slowly",
    "413": "too many bytes, or too many samples",
    "415": "another content type",
    "421": "addressed by a strange name",
    "422": "a sample does not fit the run",
    "429": "too many requests at a time",
    "503": "the service stops, or has no run",
    "504": "not answered in time",
}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "hint": {"type": "string"}},
    "required": ["error"],
}
_ANSWER = {
    "type": "object",
    "properties": {
        "predictions": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "object"}},
        },
        "notes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["predictions", "notes"],
}


class Service:
    """The service without its socket.

    Args:
        runs: The predictors; they must not be used elsewhere.
        limits: Its limits.
        hosts: Names under which it may be addressed; empty for any.
    """

    def __init__(
        self, runs: Predictors, limits: ServiceLimits, hosts: tuple[str, ...] = ()
    ) -> None:
        self.runs, self.limits, self.counters = runs, limits, Counters()
        self.queue = RequestQueue(runs, limits, self.counters)
        self._fastapi = require("fastapi", extra="serve")
        require("python_multipart", extra="serve")
        self.app = Doorman(self._made(), limits, self.counters, hosts)

    def close(self) -> None:
        """Answer what waits, and end the thread that runs networks."""
        self.app.is_stopping = True
        self.queue.close()

    def _made(self) -> Any:
        app = self._fastapi.FastAPI(
            title="finetune serve",
            description="Predictions of trained runs.",
            docs_url=None,  # FastAPI's own pages load scripts from a network
            redoc_url=None,
        )
        errors = require("starlette.exceptions", extra="serve")
        # Untyped on purpose: FastAPI reads the types of handlers, and the package is optional.
        app.add_exception_handler(errors.HTTPException, _of_starlette)
        app.add_exception_handler(Refusal, _of_refusal)
        app.add_exception_handler(Exception, _of_bug)
        add = partial(self._add, app)
        add("/", self._page, "Description", "a page of all routes, without scripts")
        add("/docs", self._page, "Description", "a page of all routes, without scripts")
        add("/runs", self._list_runs, "Runs", "the runs, what they take and what they give")
        add("/health", self._health, "Health", "whether the process answers")
        add("/ready", self._ready, "Readiness", "whether it takes requests", refusals=("503",))
        add("/metrics", self._metrics, "Metrics", "counts in the text format of Prometheus")
        for path, handler, summary in (
            ("/predict", self._predict, "Predict samples in JSON"),
            (_FILES, self._predict_files, "Predict files, one sample each"),
        ):
            add(path, handler, summary, summary, method="POST", refusals=tuple(_REFUSALS))
        app.openapi = self._openapi(app.openapi)
        return app

    def _add(
        self,
        app: Any,
        path: str,
        handler: Callable[..., Any],
        summary: str,
        description: str,
        *,
        method: str = "GET",
        refusals: tuple[str, ...] = (),
    ) -> None:
        json = {"application/json": {"schema": _ERROR}}
        responses = {code: {"description": _REFUSALS[code], "content": json} for code in refusals}
        if method == "POST":
            answer = {"application/json": {"schema": _ANSWER}}
            responses["200"] = {"description": "the predictions", "content": answer}
        kind = {"/metrics": "text/plain", "/": "text/html", "/docs": "text/html"}.get(path)
        if kind is not None:
            content = {kind: {"schema": {"type": "string"}}}
            responses["200"] = {"description": description, "content": content}
        endpoint = _request_handler(self._fastapi, handler)
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            summary=summary,
            description=description,
            responses=responses,
            operation_id=f"{method.lower()}{path.replace('/', '_')}",
        )

    def _openapi(self, made: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        """Return a function that describes the service with the runs of this moment."""

        def described() -> dict[str, Any]:
            document = made()
            runs = self.runs.now()
            specs = {name: one.run.specs for name, one in runs.items()}
            schema = request_schema(runs, specs, self.limits)
            paths = document["paths"]
            paths["/predict"]["post"]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
            # Made anew each time, as the runs may change: what FastAPI keeps stays as it is.
            files = files_schema(runs, self.limits)
            if files is None:
                return document | {
                    "paths": {path: each for path, each in paths.items() if path != _FILES}
                }
            paths[_FILES]["post"]["requestBody"] = {
                "required": True,
                "content": {"multipart/form-data": {"schema": files}},
            }
            return document

        return described

    async def _page(self, request: Any) -> Any:
        headers = {"content-security-policy": _PAGE_RULES}
        html = self._fastapi.responses.HTMLResponse
        return html(page(request.app.openapi()), headers=headers)

    async def _health(self, request: Any) -> Any:
        return _json({"status": "ok"})

    async def _ready(self, request: Any) -> Any:
        if self.app.is_stopping or not len(self.runs):
            raise Refusal(503, "the service stops" if self.app.is_stopping else "no run is loaded")
        return _json({"status": "ready", "runs": len(self.runs)})

    async def _metrics(self, request: Any) -> Any:
        gauges = {
            "requests_at_work": self.app.at_work,
            "requests_waiting": len(self.queue),
            "runs": len(self.runs),
            "ready": float(not self.app.is_stopping and len(self.runs) > 0),
        }
        kind = "text/plain; version=0.0.4; charset=utf-8"
        text = self.counters.text(gauges).encode()
        return self._fastapi.Response(text, headers={"content-type": kind})

    async def _list_runs(self, request: Any) -> Any:
        runs = self.runs.now()
        return _json({"runs": [_about(self.runs, name, runs[name].run) for name in runs]})

    async def _predict(self, request: Any) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "the body is not application/json", _NO_JSON)
        return await self._answer(
            read_json_request(await request.body(), self.runs.now(), self.limits)
        )

    async def _predict_files(self, request: Any) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise Refusal(415, "the body is not multipart/form-data", "JSON goes to /predict")
        most = self.limits.items
        size = self.limits.body_bytes
        # Starlette's own limit of a part is 1 MiB; the doorman has checked the whole body already.
        async with request.form(max_files=most, max_fields=most, max_part_size=size) as form:
            return await self._answer(await self._read_files(form))

    async def _read_files(self, form: Any) -> AskedSamples:
        """Return the files of a form as samples.

        Raises:
            Refusal: something else is in it, or the runs take no files.
        """
        if strange := sorted({name for name, _ in form.multi_items()} - {"files", "runs"}):
            raise Refusal(422, f"unknown field {strange[0][:40]!r}", "fields: files, runs")
        files, runs = form.getlist("files"), form.getlist("runs")
        loaded = self.runs.now()
        names = names_asked(runs or None, loaded)
        kinds = kinds_of(names, loaded)
        if len(kinds) != 1:
            raise Refusal(422, "a file is one column, the runs take several", "POST JSON instead")
        check_count(len(files), self.limits)
        (column, taken) = next(iter(kinds.items()))
        values = []
        for number, file in enumerate(files, 1):
            content = file.encode() if isinstance(file, str) else await file.read()
            values.append(from_file(content, taken, f"file {number}"))
        return AskedSamples(names, {column: values}, len(values))

    async def _answer(self, asked: AskedSamples) -> Any:
        """Wait for the predictions of samples.

        Raises:
            Refusal: they cannot be read, or the time is over.
        """
        waiting = self.queue.put(asked)
        limit = asyncio.timeout(self.limits.timeout_s)
        try:
            async with limit:
                found = await asyncio.wrap_future(waiting.answer)
        except (TimeoutError, asyncio.CancelledError):
            # The answer may be there by now: it came in the very moment in which the time was over.
            if not limit.expired() and not waiting.answer.cancelled():
                raise
            seconds = f"{self.limits.timeout_s:g} s"
            raise Refusal(504, f"not answered within {seconds}", "send fewer samples") from None
        rows = {name: [record.row() for record in found.by_run[name]] for name in found.by_run}
        return _json({"predictions": rows, "notes": list(found.notes)})


def _request_handler(fastapi: Any, handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler of which FastAPI knows that it takes the request itself."""

    async def endpoint(request: Any) -> Any:
        return await handler(request)

    # Set by hand: the class is known only where the optional package is there.
    endpoint.__annotations__ = {"request": fastapi.Request}
    return endpoint


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    fastapi = require("fastapi", extra="serve")
    # So that no browser takes an answer for a page: it holds text that the client has sent.
    given = {"x-content-type-options": "nosniff"} | (headers or {})
    return fastapi.Response(safe_json(value), status, given, "application/json")


async def _of_starlette(request: Any, error: Any) -> Any:
    words = {404: "no such route", 405: "not by this method"}
    reason = words.get(error.status_code, str(error.detail))
    hint = "GET / tells all routes" if error.status_code in words else None
    return _json(
        Refusal(error.status_code, reason, hint).as_data(), error.status_code, error.headers
    )


async def _of_refusal(request: Any, error: Any) -> Any:
    return _json(error.as_data(), error.status, error.headers)


async def _of_bug(request: Any, error: Any) -> Any:
    # The traceback goes to standard error, by the server.
    return _json({"error": f"a bug: {type(error).__name__}; see the output of the service"}, 500)


def _about(runs: Predictors, name: str, run: TrainedRun) -> dict[str, Any]:
    """Return what a client must know of a run."""
    classes = run.facts.classes
    return {
        "name": name,
        "task": run.config.task.type,
        "inputs": {column: run.facts.kinds[column] for column in run.facts.inputs},
        "classes": None if classes is None else list(classes),
        "shares_its_pass_with": list(runs.shares_with(name)),
    }
