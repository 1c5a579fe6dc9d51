"""Kernels that are there at once: forks of one process that has imported the large libraries which pages use.

Each of two dozen kernels would spend seconds on the same imports, an eighth of the time that the whole book takes. Only
libraries are shared; each kernel imports `dtl`, and whatever else its page asks for, by itself.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any

import psutil
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

LIBRARIES = "ipykernel.kernelapp torch matplotlib.pyplot pandas scipy.stats scipy.spatial sklearn.linear_model".split()
LIBRARIES += ["xarray", "zarr"]


class Fork(psutil.Process):
    """A process that is another's child, with what a provisioner asks of its own."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return None if self.is_running() else 0

    def send_signal(self, sig: int) -> None:
        with suppress(psutil.NoSuchProcess):  # it may end at any time, and nobody waits for it
            super().send_signal(sig)


class Forking(LocalProvisioner):
    """Starts a kernel as a fork, with the settings that it would have as a command."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        job = {"argv": cmd[cmd.index("ipykernel_launcher") :], "cwd": kwargs["cwd"], "env": kwargs["env"]}
        job["log"] = os.path.realpath(kwargs["stderr"].name)
        parent = _parent()
        print(json.dumps(job), file=parent.stdin, flush=True)
        if not (number := parent.stdout.readline()):
            raise RuntimeError("the process that starts kernels has ended; what it said stands above")
        self.process = Fork(int(number))
        self.pid = self.pgid = self.process.pid
        self.cwd = kwargs["cwd"]
        return self.connection_info


def begin() -> None:
    """Fork the kernels that this process starts from now on, where that is safe: not on macOS, not without `fork`."""
    if sys.platform == "linux":
        factory = KernelProvisionerFactory.instance()
        factory.default_provisioner_name = "forking"
        factory.provisioners["forking"] = EntryPoint("forking", "kernels:Forking", factory.GROUP_NAME)


@cache
def _parent() -> Any:
    """The process that forks. It ends with this one, and then its kernels do, too."""
    command = [sys.executable, "-P", __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """Fork a kernel for each line, and say its number."""
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # a kernel whose parent is gone ends, too
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # which ipykernel would set, too late
    for library in LIBRARIES:
        import_module(library)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the process that began this one
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for kernels that have ended
    for line in iter(sys.stdin.readline, ""):
        if pid := os.fork():
            print(pid, flush=True)
        else:
            return become_kernel(**json.loads(line))


def become_kernel(argv: list[str], cwd: str, env: dict[str, str], log: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = argv
    import_module("ipykernel.kernelapp").launch_new_instance()


if __name__ == "__main__":
    serve()
