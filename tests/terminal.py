"""A terminal for tests: a program runs in a real pty, and what it writes is put on a screen as a terminal would."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOKEN = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])")


class Terminal:
    """A Python program in a pty of `columns` x 40.

    Attributes:
        written: All that it has written.
    """

    def __init__(self, program: str, columns: int = 100) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(columns)
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=_control,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "", "LINES": ""},
        )  # fmt: skip
        os.close(theirs)
        self.written = ""

    def resize(self, columns: int) -> None:
        """Make the window as wide as this."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def until(self, text: str) -> None:
        """Read until the program has written `text`."""
        while text not in self.written:
            self.written += os.read(self._ours, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        while True:
            try:
                read = os.read(self._ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                read = b""
            if not read:
                os.close(self._ours)
                return self._process.wait()
            self.written += read.decode()


def _control() -> None:
    """Make the pty the terminal that controls this process, so that Ctrl-C is a signal; what is typed is not shown."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    options = termios.tcgetattr(0)
    options[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, options)


def screen(written: str) -> list[str]:
    """The lines that stand on a terminal, with those that scrolled out, without spaces at their ends."""
    lines, row, column = [""], 0, 0
    for codes, command, control, character in TOKEN.findall(written):
        if character:
            lines[row] = lines[row].ljust(column)[:column] + character + lines[row][column + 1 :]
            column += 1
        elif control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            lines.extend([""] * (row + 1 - len(lines)))
        elif command == "A":
            row = max(0, row - int(codes or 1))
        elif command == "K":
            lines[row] = ""
        else:
            assert command in "mhl", f"{codes}{command}: not known to this terminal"
    return [line.rstrip() for line in lines]
