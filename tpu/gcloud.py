"""Runs gcloud."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from typing import Any

from electra_flax.errors import UserError
from tpu.commands import Command


class GcloudError(UserError):
    """gcloud said no."""

    def __init__(self, command: Command, said: str) -> None:
        self.said = said
        lines = [line for line in said.splitlines() if line.strip()]
        wrong = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "it said nothing")
        super().__init__(f"gcloud {' '.join(command[:4])}: {wrong.strip()}")

    @property
    def is_not_found(self) -> bool:
        return any(sign in self.said for sign in ("NOT_FOUND", "was not found", "matched no objects"))


class Gcloud:
    """Every command goes through here, so that --dry-run can print instead of doing."""

    def __init__(self, executable: str = "gcloud", dry_run: bool = False) -> None:
        self._executable = executable
        self.dry_run = dry_run

    @property
    def is_there(self) -> bool:
        return shutil.which(self._executable) is not None

    def do(self, command: Command, stdin: str = "") -> str:
        """What changes something: printed, and run unless this is a dry run. Raises GcloudError."""
        print("+", shlex.join([self._executable, *command]), file=sys.stderr, flush=True)
        return "" if self.dry_run else self.ask(command, stdin)

    def ask(self, command: Command, stdin: str = "") -> str:
        """Runs a command, also in a dry run; its output. Raises GcloudError."""
        try:
            found = subprocess.run(
                [self._executable, *command], input=stdin, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise UserError(
                f"{self._executable}: not installed; it is part of the Google Cloud SDK: install that, then gcloud "
                "auth login"
            ) from None
        if found.returncode:
            raise GcloudError(command, found.stderr)
        return found.stdout

    def find_json(self, command: Command) -> list[dict[str, Any]]:
        """The JSON objects that a command finds, one after the other. Raises GcloudError, also for half of one: an
        object that is written just then may come cut off, and the next look finds it whole."""
        text, decoder, found = self.find(command).strip(), json.JSONDecoder(), []
        while text:
            try:
                each, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                raise GcloudError(command, f"ERROR: cut off, or no JSON ({error})") from None
            found.append(each)
            text = text[end:].lstrip()
        return found

    def describe(self, command: Command) -> dict[str, Any] | None:
        """What a describe command finds, or None where there is nothing of that name. Raises GcloudError."""
        return next(iter(self.find_json(command)), None)

    def find(self, command: Command) -> str:
        """The output of a command, "" where what it names is not there. Raises GcloudError."""
        try:
            return self.ask(command)
        except GcloudError as error:
            if error.is_not_found:
                return ""
            raise

    def attached(self, command: Command) -> int:
        """Runs a command with this terminal (ssh); its exit code."""
        print("+", shlex.join([self._executable, *command]), file=sys.stderr, flush=True)
        return 0 if self.dry_run else subprocess.run([self._executable, *command], check=False).returncode
