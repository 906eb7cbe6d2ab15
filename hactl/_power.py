"""Runs a program of the fence-agents package, as it is: options on stdin, one `name=value` a line, as stonith gives
them.

An agent is a group of processes of its own with a deadline; at the deadline the whole group is killed. What counts is
the status that is read back after the switching, and of that only "off" (exit status 2 of the action `status`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from nodewatch.sections import Agent

DIRECTORY = Path("/usr/sbin")
STATUS_ON, STATUS_OFF = 0, 2
"""Exit statuses of the action `status`, from fencing.py of fence-agents: everything else is "not known"."""
OUTPUT_MAX = 65536
NEEDED = frozenset({"on", "off", "status", "reboot"})
"""Actions of an agent that switches power. One that only cuts a fabric has no `reboot`."""


class PowerUnknown(Exception):
    """Whether the node is off is not known. The text says what happened and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run: `status` None = it was killed at the deadline. `text`: its output; `said`: why it failed, one line."""

    status: int | None
    text: str
    said: str


async def switch_off(agent: Agent, directory: Path = DIRECTORY) -> str:
    """Off, and read back as off; what was seen, in words. Raises PowerUnknown.

    Off already counts: whatever the node had in memory is gone.
    """
    if (await _run(agent, "status", directory)).status == STATUS_OFF:
        return f"off already, says {agent.agent}"
    switched = await _run(agent, "off", directory)
    seen = await _run(agent, "status", directory)
    if seen.status == STATUS_OFF:
        return f"off, read back by {agent.agent}"
    said = switched.said if switched.status else seen.said
    found = "on" if seen.status == STATUS_ON else "unknown" if seen.status is not None else "no answer in time"
    raise PowerUnknown(f"{agent.agent} off: status is {found}: {said or 'it said nothing'}")


async def switch_on(agent: Agent, directory: Path = DIRECTORY) -> str:
    """On, and read back as on. Raises PowerUnknown."""
    switched = await _run(agent, "on", directory)
    seen = await _run(agent, "status", directory)
    if seen.status == STATUS_ON:
        return f"on, read back by {agent.agent}"
    raise PowerUnknown(f"{agent.agent} on: {switched.said or seen.said or 'it said nothing'}")


async def unfit(agent: Agent, directory: Path = DIRECTORY) -> str:
    """Why this agent cannot be counted on here; "" = it is there, switches power, and its secret can be read."""
    try:
        _secret(agent)
        ran = await _execute(agent, "action=metadata\n", directory)
        actions = {each.get("name") for each in ElementTree.fromstring(ran.text).iter("action")}
    except PowerUnknown as wrong:
        return str(wrong)
    except ElementTree.ParseError as wrong:
        return f"{agent.agent}: its metadata is not understood ({wrong})"
    missing = sorted(NEEDED - actions)
    return f"{agent.agent} does not switch power: it has no action {', '.join(missing)}" if missing else ""


async def _run(agent: Agent, action: str, directory: Path) -> Ran:
    options = {**agent.options, **_secret(agent), "action": action}
    text = "".join(f"{name}={value}\n" for name, value in options.items())
    return await _execute(agent, text, directory)


async def _execute(agent: Agent, text: str, directory: Path) -> Ran:
    try:
        process = await asyncio.create_subprocess_exec(
            directory / agent.agent,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise PowerUnknown(
            f"{directory / agent.agent}: {error.strerror}; install the package fence-agents on every node"
        ) from error
    try:
        output, errors = await asyncio.wait_for(process.communicate(text.encode()), agent.timeout_s)
    except TimeoutError:
        return Ran(status=None, text="", said=f"no answer in {agent.timeout_s} s, ended")
    finally:
        # Also what the agent itself started, and also when this task is cancelled.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    text, said = (each[:OUTPUT_MAX].decode(errors="replace") for each in (output, errors))
    # Python's warnings go where errors go: they are no part of the output.
    return Ran(status=process.returncode, text=text, said=_last_line(said) or _last_line(text))


def _secret(agent: Agent) -> dict[str, str]:
    """The option that is kept out of the configuration. Raises PowerUnknown."""
    if not agent.secret_file:
        return {}
    try:
        with open(agent.secret_file, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PowerUnknown(f"secret_file {agent.secret_file}: {error}; write the secret into it, mode 0600") from error
    if stat.S_IMODE(mode) & 0o077:
        said = f"others may read it (mode {stat.S_IMODE(mode):04o}); run `chmod 600` on it"
        raise PowerUnknown(f"secret_file {agent.secret_file}: {said}")
    if not line or not line.isprintable():
        raise PowerUnknown(f"secret_file {agent.secret_file}: its first line is not a secret")
    return {agent.secret_option: line}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
