"""The dashboard's files: a static page over the public API, and Plotly's script out of the installed package."""

import importlib.util
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from service.errors import NotFoundError

FOLDER: Final = Path(__file__).parents[1] / "dashboard"


def mount(app: FastAPI) -> None:
    """Serve the page at `/`, what it needs under `/dashboard/`, and at `/docs` its reference of the API."""

    @app.get("/", include_in_schema=False)
    async def index(_request: Request) -> Response:
        return _file(FOLDER / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs(_request: Request) -> Response:
        return RedirectResponse("/#/api")

    @app.get("/dashboard/plotly.min.js", include_in_schema=False)
    async def plotly(request: Request) -> Response:
        script = plotly_script()
        if not script.is_file():
            raise _not_installed(script)
        # As a static file, so that a browser that has these megabytes is told to keep them.
        return await StaticFiles(directory=script.parent).get_response(script.name, request.scope)

    if FOLDER.is_dir():
        app.mount("/dashboard", StaticFiles(directory=FOLDER), name="dashboard")


def plotly_script() -> Path:
    """Return where the installed plotly keeps its script, found without importing the package."""
    spec = importlib.util.find_spec("plotly")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
    return folder / "package_data" / "plotly.min.js"


def _file(path: Path) -> Response:
    if not path.is_file():
        raise _not_installed(path)
    return FileResponse(path)


def _not_installed(path: Path) -> NotFoundError:
    return NotFoundError(f"file {path.name} is not installed; expected it with the service; install syncbn[service] again")
