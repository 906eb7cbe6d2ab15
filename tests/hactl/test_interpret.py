"""The interpreter's threads: what may wait for the disk keeps nothing else waiting."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from hactl.controller import Run, Step, StepDone
from hactl.interpret import Interpreter


def test_a_check_of_the_handle_does_not_wait_for_a_write_to_the_volume() -> None:
    written = threading.Event()
    disk: Any = SimpleNamespace(verify=lambda: None)
    service: Any = SimpleNamespace(damaged=lambda: False)
    gate: Any = SimpleNamespace()
    interpreter = Interpreter(volume="v1", disk=disk, service=service, gate=gate, monotonic_s=lambda: 0.0)

    async def play() -> object:
        saving = asyncio.ensure_future(interpreter.on_service(lambda: written.wait(60)))
        try:
            return await asyncio.wait_for(interpreter.run(Run(step=Step.VERIFY)), 30)
        finally:
            written.set()
            assert await saving

    assert isinstance(asyncio.run(play()), StepDone)
