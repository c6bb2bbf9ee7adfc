"""A lock on a gs:// workdir: an object that its holder rewrites, and that is free when nobody does.

A bucket has no locks that end with their process. What it has is "write if the object is still that of generation
n": of several that try, one succeeds.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from electra_flax.errors import UserError
from electra_flax.files import parse_json
from electra_flax.storage.bucket import RemoteFolder

log = logging.getLogger("electra_flax")

_RENEW_SECONDS = 10.0
_PATIENCE_SECONDS = 45.0


class Lease:
    """Inside its `with`, no other process holds the lock of the folder. Losing it ends the process with exit code 3.

    Taking it raises UserError where another process holds it. A holder that was killed is waited for, 45 s, unless it
    ran on this machine.
    """

    def __init__(self, folder: RemoteFolder) -> None:
        self._folder = folder
        boot = Path("/proc/sys/kernel/random/boot_id")
        self._content = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "boot": boot.read_text().strip() if boot.exists() else "",
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self._generation = 0
        self._ended = threading.Event()

    def __enter__(self) -> Lease:
        generation, holder = self._look()
        if generation and not self._is_dead(holder):
            self._wait_until_gone(generation, holder)
        # Of several that saw the lock free, one writes it; generation 0 is the bucket's word for "while there is none".
        while not self._write(generation):
            generation, holder = self._look()
            # Otherwise its holder ended meanwhile, or was killed and its last request came late.
            if generation and not self._is_dead(holder):
                raise self._refusal(holder)
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()
        self._keeper.join()
        try:
            self._folder.try_to("be written", lambda: self._blob().delete(if_generation_match=self._generation))
        except UserError as error:
            log.warning("the lock could not be removed: %s", error)

    def _wait_until_gone(self, generation: int, holder: dict[str, Any]) -> None:
        log.info("%s/lock is held by %s; waiting %.0f s to see whether it is alive", self._folder.url, _who(holder),
                 _PATIENCE_SECONDS)  # fmt: skip
        # A holder that lives writes every 10 s, and each write is a new generation. So it shows without a look at any
        # time that it wrote down: clocks of two machines need not agree.
        end = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(_PATIENCE_SECONDS / 15)
            now, holder = self._look()
            if now != generation:
                if now:
                    raise self._refusal(holder)
                return

    def _refusal(self, holder: dict[str, Any]) -> UserError:
        return UserError(
            f"{self._folder.url}: another process is at work there ({_who(holder)}): wait for it, end it, or use "
            "another folder"
        )

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """Return whether the holder was killed, known only where it ran on this machine."""
        return holder.get("boot") == self._content["boot"] != "" and not Path(f"/proc/{holder.get('pid')}").exists()

    def _blob(self) -> Any:
        """Return a new object each time: one that was read asks for that generation ever after."""
        return self._folder.blob("lock")

    def _look(self) -> tuple[int, dict[str, Any]]:
        """Return generation and content of the lock; 0 where there is none."""
        from google.api_core.exceptions import NotFound

        def read() -> tuple[int, dict[str, Any]]:
            blob = self._blob()
            try:
                text = blob.download_as_bytes(timeout=_RENEW_SECONDS)
            except NotFound:
                return 0, {}
            try:
                return int(blob.generation), parse_json(text, dict[str, Any], blob.name, "")
            except UserError:  # another's file of that name
                return int(blob.generation), {}

        return self._folder.try_to("be read", read)

    def _write(self, generation: int) -> bool:
        """Write the lock if its generation is still that; return whether it did."""
        from google.api_core.exceptions import PreconditionFailed

        def write() -> bool:
            blob = self._blob()
            try:
                blob.upload_from_string(
                    json.dumps(self._content), if_generation_match=generation, timeout=_RENEW_SECONDS
                )
            except PreconditionFailed:
                return False
            self._generation = int(blob.generation)
            return True

        if self._folder.try_to("be written", write):
            return True
        # A write whose answer was lost is repeated, and then refused because of itself.
        self._generation, holder = self._look()
        return holder.get("token") == self._content["token"]

    def _keep(self) -> None:
        while not self._ended.wait(_RENEW_SECONDS):
            try:
                is_ours = self._write(self._generation)
            except UserError as error:
                # No reason to end: whoever takes the lock meanwhile makes a new generation, and the next write sees it.
                log.warning("the lock could not be renewed: %s", error)
                continue
            if not is_ours:
                print(
                    f"electra-flax: error: another process has taken over --workdir {self._folder.url}: this one ends "
                    "so as not to disturb it",
                    file=sys.stderr,
                    flush=True,
                )
                # At once: an exception in this thread would not reach the loop, whose next save would mix two runs.
                os._exit(3)


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
