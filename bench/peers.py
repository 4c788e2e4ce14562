"""The three peers: how Jupyter finds each, and what has to be closed before a cold start."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Protocol

from remoter_kernel.local.login.keeper.endpoint import end_logins

if TYPE_CHECKING:
    from bench.ground import Ground


class Peer(Protocol):
    """A way to get a kernel."""

    name: str

    def prepare(self, ground: Ground) -> str:
        """Write what Jupyter needs; says the kernelspec's name."""
        ...

    def make_cold(self, ground: Ground) -> None:
        """Close every connection and session that the last start may have left."""
        ...


class Plain:
    """ipykernel on this machine: what everything else is measured against."""

    name = "plain"

    def prepare(self, ground: Ground) -> str:
        """Write a kernelspec that starts ipykernel here."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return _write_kernelspec(ground, "bench-plain", argv)

    def make_cold(self, ground: Ground) -> None:
        """Nothing stays behind a local kernel."""


class Sshpyk:
    """sshpyk: a kernel provisioner that starts the kernel over `ssh` and forwards its ports."""

    name = "sshpyk"

    def prepare(self, ground: Ground) -> str:
        """Write a kernelspec with sshpyk's provisioner, as `sshpyk add` does."""
        provisioner = {
            "provisioner_name": "sshpyk-provisioner",
            "config": {
                "ssh_host_alias": "bench-sshpyk",
                "ssh_config": str(ground.ssh_config),
                "remote_python": sys.executable,
                "remote_kernel_name": "python3",
            },
        }
        return _write_kernelspec(
            ground,
            "bench-sshpyk",
            [],
            interrupt_mode="message",
            metadata={"kernel_provisioner": provisioner},
        )

    def make_cold(self, ground: Ground) -> None:
        """Close the ControlMaster."""
        command = ["ssh", "-F", str(ground.ssh_config), "-O", "exit", "bench-sshpyk"]
        subprocess.run(command, check=False, capture_output=True, timeout=30)


class Remoter:
    """This project."""

    name = "remoter"

    def prepare(self, ground: Ground) -> str:
        """Write remotes.toml and the kernelspec that `remoter add` would write."""
        (ground.folder / "near" / "remotes.toml").write_text(
            "[remotes.bench]\n"
            'host = "bench-remoter"\n'
            f"python = {json.dumps(sys.executable)}\n"
            f"ssh_config = {json.dumps(str(ground.ssh_config))}\n"
        )
        argv = [sys.executable, "-P", "-m", "remoter_kernel", "-f", "{connection_file}"]
        return _write_kernelspec(
            ground, "remoter-bench", [*argv, "--remote", "bench"], interrupt_mode="message"
        )

    def make_cold(self, ground: Ground) -> None:  # noqa: ARG002 - the other peers need it
        """End the keeper, and the login with it; the uploaded zip stays there, on purpose."""
        end_logins()


PEERS: dict[str, type[Peer]] = {"plain": Plain, "sshpyk": Sshpyk, "remoter": Remoter}


def _write_kernelspec(ground: Ground, name: str, argv: list[str], **more: object) -> str:
    folder = ground.folder / "jupyter" / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"argv": argv, "display_name": name, "language": "python", **more}
    (folder / "kernel.json").write_text(json.dumps(spec))
    return name
