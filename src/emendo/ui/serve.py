"""Serving the page: uvicorn on this machine, Gradio inside, the guard around both."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emendo.errors import InputError, OutputError
from emendo.io.extras import pip_install
from emendo.ui.desk import Desk
from emendo.ui.guard import App, Guard
from emendo.ui.taking import ADAPTER, UPDATE

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_PASSWORD = 10


def check_extra() -> None:
    """Refuse to begin without the extra.

    Raises:
        InputError: Gradio cannot be imported.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported; nobody is told of this page
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the page needs the package gradio, which cannot be imported ({error}): {pip_install('ui')}"
        ) from error


def check_host(host: str, password: str | None) -> None:
    """Refuse a page that others could use without a password.

    Raises:
        InputError: The host is not loopback and there is no password, or a short one.
    """
    if host in LOOPBACK:
        return
    if password is None:
        raise InputError(
            f"--host {host} lets others on the network use the page, who could edit the model; expected a password "
            "(set EMENDO_UI_PASSWORD), or leave --host out"
        )
    if len(password) < SHORTEST_PASSWORD:
        raise InputError(
            f"the password has {len(password)} characters; expected at least {SHORTEST_PASSWORD} (EMENDO_UI_PASSWORD)"
        )


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OutputError: The port is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise OutputError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another port (--port 0 takes a free one)"
        ) from error
    return listening


def application(desk: Desk, *, host: str, port: int, password: str | None = None) -> App:
    """The page with its guard, for any ASGI server.

    Args:
        desk: Does what is asked for.
        host: On which it is served.
        port: Likewise.
        password: What a browser has to send; None: none.
    """
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse, Response

    from emendo.ui.page import build, theme
    from emendo.ui.view import style

    inner = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @inner.get("/take/{name}")
    def take(name: str) -> Response:
        path: Path = desk.files / name
        if name not in (UPDATE, ADAPTER) or not path.is_file():
            return PlainTextResponse("there is no such file; make it on the page first\n", status_code=404)
        return FileResponse(path, filename=name)

    gr.mount_gradio_app(
        inner,
        build(desk),
        path="/",
        theme=theme(),
        css=style(),
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=0,
    )
    return Guard(inner, _names(host, port), password)


def _names(host: str, port: int) -> frozenset[str] | None:
    """Host headers by which the page is known; None where the machine has names that it does not know itself."""
    if host in ("0.0.0.0", "::"):
        return None
    names = {"127.0.0.1", "localhost", "[::1]"} if host in LOOPBACK else {f"[{host}]" if ":" in host else host.lower()}
    return frozenset(f"{name}:{port}" for name in names) | (frozenset(names) if port == 80 else frozenset())


def serve(
    desk: Desk, listening: socket.socket, *, host: str, password: str | None, told: Callable[[str], None]
) -> None:
    """Serve the page until somebody interrupts it.

    Args:
        desk: Does what is asked for; its jobs are cancelled at the end.
        listening: From `open_socket`.
        host: On which it listens.
        password: What a browser has to send; None: none.
        told: Is given the page's address once it is there.
    """
    import uvicorn

    port = listening.getsockname()[1]
    app: Any = application(desk, host=host, port=port, password=password)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=64 * 1024,
    )
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    told(f"http://{shown}:{port}/")
    uvicorn.Server(config).run(sockets=[listening])
