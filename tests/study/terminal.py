"""A terminal in a box: a command on a pseudo-terminal, and what a person would see there after every write."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

CODES = re.compile(r"\x1b\[([?>]?)([\d;]*)([A-Za-z])|\x1b[=>78]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")

UNFINISHED = re.compile(rb"(?:\x1b(?:\[[?>]?[\d;]*)?|[\xc0-\xff][\x80-\xbf]{0,2})$")


@dataclass
class Terminal:
    """Lines of text with a cursor: as much of a VT100 as progress displays use.

    wrapped: texts that ran over the right edge. above: lines that have left the picture at its top are kept, so
    `lines` is the whole session. hidden: whether the cursor is. unknown: codes it does not know.
    """

    width: int
    height: int = 24
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    hidden: bool = False
    wrapped: list[str] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)

    def write(self, text: str) -> None:
        """Take what a program wrote."""
        place = 0
        for found in CODES.finditer(text):
            self._print(text[place : found.start()])
            self._code(found)
            place = found.end()
        self._print(text[place:])

    def _print(self, text: str) -> None:
        for letter in text:
            if letter == "\r":
                self.column = 0
            elif letter == "\n":
                self._down()
            elif letter == "\x07":
                continue
            else:
                if self.column >= self.width:
                    self.wrapped.append(self.lines[self.row])
                    self.column = 0
                    self._down()
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        while self.row >= len(self.lines):
            self.lines.append("")

    def _code(self, found: re.Match[str]) -> None:
        private, numbers, letter = found.groups()
        first = (numbers or "").partition(";")[0]
        count = int(first) if first else 1
        if letter == "A":  # it cannot go above the screen's first line
            self.row = max(self.row - count, len(self.lines) - self.height, 0)
        elif letter == "K":
            line = self.lines[self.row]
            self.lines[self.row] = {"": line[: self.column], "0": line[: self.column], "2": ""}.get(numbers, line)
        elif letter == "G":
            self.column = count - 1
        elif private == "?" and numbers == "25":
            self.hidden = letter == "l"
        elif letter not in ("m", "h", "l", None):
            self.unknown.add(found.group())

    @property
    def text(self) -> str:
        """What there is to see, trailing blanks left out."""
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


@dataclass
class Session:
    """A command that ran on a terminal: what was on it after every write, and how the command ended."""

    terminal: Terminal
    seen: list[str]
    code: int
    raw: str


def on_a_terminal(
    command: Sequence[str],
    width: int,
    environment: dict[str, str],
    look: Callable[[str, Callable[[bytes], int]], None] = lambda text, press: None,
    seconds: float = 300.0,
) -> Session:
    """Run a command on a terminal `width` columns wide.

    look: gets, after every write, the text on the terminal and what presses keys there.
    """
    child, handle = pty.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
            os.execvpe(command[0], list(command), {**environment, "TERM": "xterm-256color"})
        finally:
            os._exit(127)
    fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    terminal, seen, raw = Terminal(width), [], ""
    deadline = time.monotonic() + seconds
    rest = b""
    while True:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        if not select.select([handle], [], [], 0.5)[0]:
            continue
        try:
            given = os.read(handle, 65536)
        except OSError:  # the other end is closed
            given = b""
        if not given:
            break
        rest += given
        cut = UNFINISHED.search(rest)  # a read may end within a code or a letter
        whole, rest = (rest[: cut.start()], rest[cut.start() :]) if cut else (rest, b"")
        text = whole.decode()
        raw += text
        terminal.write(text)
        seen.append(terminal.text)
        look(terminal.text, lambda keys: os.write(handle, keys))
    os.close(handle)
    _, status = os.waitpid(child, 0)
    return Session(terminal, seen, os.waitstatus_to_exitcode(status), raw)
