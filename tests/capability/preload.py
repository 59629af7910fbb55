"""The process behind `preloaded.Preloaded`: it imports the program once, and then forks a copy for each command.

A command that runs in such a copy enters by the same `main`, and has its own session, output and environment. It saves
the second that the imports take.
"""

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
from typing import Any, NoReturn

from tests.faults.injector import install_filter

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Obey the requests that come over descriptor 0, one line each, until it is closed."""
    channel = socket.socket(fileno=0)
    import lading  # noqa: PLC0415 - which one is this process's own affair

    for module in pkgutil.walk_packages(lading.__path__, "lading."):
        if ".migrations" not in module.name:
            importlib.import_module(module.name)
    importlib.import_module("alembic.command")
    gc.collect()
    gc.freeze()
    channel.sendall(json.dumps({"package": lading.__file__}).encode() + b"\n")
    for line in channel.makefile("rb"):
        request = json.loads(line)
        channel.sendall(json.dumps(_obey(channel, request)).encode() + b"\n")


def _obey(channel: socket.socket, request: dict[str, Any]) -> object:
    if "wait" in request:
        pid, status = os.waitpid(request["wait"], request["flags"])
        return os.waitstatus_to_exitcode(status) if pid else None
    ours, theirs = socket.socketpair()
    if (pid := os.fork()) == 0:
        channel.close()
        ours.close()
        _run(request, theirs)
    theirs.close()
    if request["filtered"]:
        _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        socket.send_fds(channel, [b"\n"], listeners)
        for listener in listeners:
            os.close(listener)
    ours.close()
    return pid


def _run(request: dict[str, Any], listener_goes_to: socket.socket) -> NoReturn:
    code = 70
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # nothing outlives the tests
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["lading", *request["arguments"]]
        if request["filtered"]:
            listener = install_filter()
            socket.send_fds(listener_goes_to, [b"\n"], [listener])
            os.close(listener)
        listener_goes_to.close()
        from lading.cli.main import main as program  # noqa: PLC0415

        program()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does at its end
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
