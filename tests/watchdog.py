"""Ends a test run that hangs, with the place where it hangs as the last lines of its output.

pytest-timeout's signal does not reach a main thread that sits in a library's C code. faulthandler's dump has every
thread, each with its innermost frame first, so that the end of a log shows the outermost ones; it also leaves processes
of Ray behind, which keep the output open, and whoever reads it waiting. So between the two limits this one prints the
main thread's stack, the innermost frame last, and ends everything that the run has started.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Generator
from contextlib import suppress

import psutil
import pytest

LIMIT = "RAYVIDEO_TEST_LIMIT_S"
"""Environment variable: seconds that a test may take with its fixtures."""
LATER_THAN_TIMEOUT_S = 200.0
"""Without the variable: seconds after a test's own timeout, which is the first to be heard."""
PATIENCE_S = 10.0  # for killed processes to be gone
EXIT_CODE = 3


class Watchdog:
    """A pytest plugin. Its limit is per test, with setup and teardown."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._output = os.dup(2)  # the real one: plugins are configured while nothing is captured
        self._phase = "setup"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        timer = threading.Timer(self._limit(item), self._end, args=(item.nodeid,))
        timer.daemon = True
        timer.start()
        try:
            return (yield)
        finally:
            timer.cancel()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        self._phase = "setup"
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        self._phase = "call"
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        self._phase = "teardown"
        return (yield)

    def _limit(self, item: pytest.Item) -> float:
        if limit := os.environ.get(LIMIT):
            return float(limit)
        marker = item.get_closest_marker("timeout")
        timeout = marker.args[0] if marker else self._config.getini("timeout")
        return float(timeout) + LATER_THAN_TIMEOUT_S

    def _end(self, test: str) -> None:
        """Say where the main thread is, and end this process with all that it has started; in the timer's thread."""
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        os.write(self._output, f"\n{test} hangs in its {self._phase}:\n{stack}".encode())
        started = psutil.Process().children(recursive=True)
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=PATIENCE_S)
        os._exit(EXIT_CODE)
