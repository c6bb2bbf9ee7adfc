"""Runs gcloud."""

import json
import shlex
import shutil
import subprocess
import sys
from typing import TypeVar

from electra_flax.errors import UserError, escaped
from electra_flax.files import parse_json
from tpu.commands import Command

T = TypeVar("T")
# gcloud ends with 1 whatever Google answered, and with --format=json or core/show_structured_logs its errors are the
# same words; so the names of google.rpc.Code are looked for in them, and numbers where the error of an operation has
# one. What will not go away by itself:
_FOR_GOOD = ("PERMISSION_DENIED", "INVALID_ARGUMENT", "UNAUTHENTICATED", "FAILED_PRECONDITION")
_FOR_GOOD_CODES = (3, 7, 9, 16)
# What passes: DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (no capacity now), UNAVAILABLE.
_PASSING_CODES = (4, 8, 14)
_NOT_FOUND = ("NOT_FOUND", "was not found", "matched no objects")  # gcloud storage has no code, only the last two
_USAGE = 2  # gcloud's exit code for a command that it does not know


class GcloudError(UserError):
    """gcloud said no."""

    def __init__(self, command: Command, said: str, exit_code: int = 1) -> None:
        self.said, self.exit_code = said, exit_code
        error = _operation_error(said)
        self.code = error[0] if error else None
        reason = error[1] if error else _error_line(said)
        super().__init__(f"gcloud {' '.join(command[:4])}: {reason}")

    @property
    def is_not_found(self) -> bool:
        return any(sign in self.said for sign in _NOT_FOUND)

    @property
    def is_for_good(self) -> bool:
        is_named = any(sign in self.said for sign in _FOR_GOOD)
        return is_named or self.code in _FOR_GOOD_CODES or self.exit_code == _USAGE

    @property
    def is_refusal(self) -> bool:
        """Return whether an operation ended with a reason that does not pass like lack of capacity."""
        return self.code is not None and self.code not in _PASSING_CODES


def _error_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return next((line for line in lines if "ERROR" in line), lines[-1] if lines else "no message").strip()


def _operation_error(said: str) -> tuple[int, str] | None:
    """Return (code, reason) where gcloud prints the error of an operation, JSON over several lines."""
    _, sign, rest = said.partition("ERROR:")
    start = rest.find("{")
    if not sign or start < 0 or "\n" in rest[:start]:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(rest[start:])
    except (json.JSONDecodeError, RecursionError):
        return None
    code, message = found.get("code"), found.get("message")
    if not isinstance(code, int) or not isinstance(message, str):
        return None
    return code, f"ERROR: {' '.join(message.split())} (code {code})"


class Gcloud:
    """Every command goes through here, so that --dry-run can print instead of doing."""

    def __init__(self, executable: str = "gcloud", dry_run: bool = False) -> None:
        self._executable = executable
        self.dry_run = dry_run

    @property
    def is_there(self) -> bool:
        return shutil.which(self._executable) is not None

    def do(self, command: Command, stdin: str = "") -> str:
        """Print and, unless this is a dry run, run what changes something. Raises GcloudError."""
        print("+", escaped(shlex.join([self._executable, *command])), file=sys.stderr, flush=True)
        return "" if self.dry_run else self.ask(command, stdin)

    def ask(self, command: Command, stdin: str = "") -> str:
        """Run a command, also in a dry run; return its output. Raises GcloudError."""
        try:
            found = subprocess.run(
                [self._executable, *command], input=stdin, capture_output=True, encoding="utf-8", errors="replace",
                check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise UserError(
                f"{self._executable}: not installed: install the Google Cloud SDK, then run gcloud auth login"
            ) from None
        except OSError as error:  # no processes to be had for now, or no program
            raise GcloudError(command, f"ERROR: {self._executable} cannot be run ({error.strerror})") from None
        if found.returncode:
            raise GcloudError(command, found.stderr, found.returncode)
        return found.stdout

    def answer(self, command: Command, kind: type[T], *, is_ours: bool = False) -> T:
        """Return the JSON that a command prints, as a `kind`; it must be there. Raises GcloudError.

        Also for half of it or for something else: what is written just then may come cut off, and the next look finds
        it whole. Unknown fields are passed over as Google's, unless it `is_ours`.
        """
        text = self.ask(command)
        try:
            return parse_json(text, kind, "its answer", "try again, or update gcloud", is_ours=is_ours)
        except UserError as error:
            raise GcloudError(command, f"ERROR: {error}") from None

    def describe(self, command: Command, kind: type[T], *, is_ours: bool = False) -> T | None:
        """Return what `answer` does, or None where there is nothing of that name. Raises GcloudError."""
        try:
            return self.answer(command, kind, is_ours=is_ours)
        except GcloudError as error:
            if error.is_not_found:
                return None
            raise

    def find(self, command: Command) -> str:
        """Return the output of a command, "" where what it names is not there. Raises GcloudError."""
        try:
            return self.ask(command)
        except GcloudError as error:
            if error.is_not_found:
                return ""
            raise

    def attached(self, command: Command) -> int:
        """Run a command with this terminal (ssh); return its exit code."""
        print("+", escaped(shlex.join([self._executable, *command])), file=sys.stderr, flush=True)
        return 0 if self.dry_run else subprocess.run([self._executable, *command], check=False).returncode
