"""`[fencing]` in hactl.toml: strictly read, wrong values named with their line."""

from __future__ import annotations

import pytest

from nodewatch.config import ConfigError, parse_config

from .test_config import GOOD

AGENT = """
[[fencing.agent]]
node = "{node}"
agent = "fence_ipmilan"
options = {{ ip = "10.0.0.{number}", lanplus = true, power_timeout = 30 }}
secret_file = "/etc/hactl/bmc.secret"
"""
AGENTS = "".join(AGENT.format(node=f"n{number}", number=number) for number in (1, 2, 3))
WATCHDOG = '[watchdog]\ndevice = "/dev/watchdog0"\n'


def section(text: str) -> str:
    return f"{GOOD}{WATCHDOG}[fencing]\n{text}"


def test_without_the_section_reservations_fence_and_the_digest_is_as_before() -> None:
    plain = parse_config(GOOD)
    assert plain.fencing.levels == ("reservation",) and not plain.watchdog_fences
    said = parse_config(GOOD + '[fencing]\nlevels = ["reservation"]\n')
    assert said.digest() == plain.digest()


def test_a_whole_section_is_read() -> None:
    config = parse_config(section(f'levels = ["reservation", "power", "watchdog"]\ndistrust = ["v2"]\n{AGENTS}'))
    assert config.fencing.levels == ("reservation", "power", "watchdog")
    assert config.fencing.distrust == ("v2",) and config.watchdog_fences
    agent = config.fencing.agent("n2")
    assert agent is not None
    assert (agent.agent, agent.secret_file, agent.secret_option) == (
        "fence_ipmilan",
        "/etc/hactl/bmc.secret",
        "password",
    )
    assert agent.options == {"ip": "10.0.0.2", "lanplus": "1", "power_timeout": "30"}
    assert config.fencing.agent("n9") is None


def test_levels_must_be_equal_on_all_nodes_and_agents_need_not() -> None:
    one = parse_config(section(f'levels = ["reservation", "power"]\n{AGENTS}'))
    assert one.digest() != parse_config(GOOD).digest()
    assert one.digest() == parse_config(section(f'levels = ["reservation", "power"]\n{AGENTS}timeout_s = 9\n')).digest()
    assert one.digest() != parse_config(section(f'levels = ["power", "reservation"]\n{AGENTS}')).digest()


ONE = AGENT.format(node="n1", number=1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("levels = []", r"levels: \[\] is not valid"),
        ('levels = "power"', "levels: .* list some of reservation, power, watchdog"),
        ('levels = ["reservation", "prayer"]', "levels"),
        ('levels = ["reservation", "reservation"]', "twice"),
        ('levels = ["power"]\n' + AGENTS, "the disk always decides who may write"),
        ('levels = ["reservation", "power"]', "n1, n2, n3 has no agent"),
        ('distrust = ["v1"]', "nobody could ever take over v1"),
        ("distrust = [1]", "list names of volumes"),
        ("order = 1", "unknown key"),
        ("agent = 1", r"\[\[fencing.agent\]\]"),
        (ONE + ONE, r"line 29: \[\[fencing.agent\]\] node: n1 has an agent already"),
        (ONE.replace("n1", "n9"), "must be one of n1, n2, n3"),
        (ONE.replace("fence_ipmilan", "/bin/sh"), "name a program of the fence-agents package"),
        (ONE.replace("fence_ipmilan", "fence_scsi"), "takes reservations"),
        (ONE + "retries = 3", "retries: unknown key"),
        (ONE + "timeout_s = 0", "from 1 to 600"),
        (ONE + "timeout_s = true", "from 1 to 600"),
        (ONE.replace("power_timeout = 30", 'action = "on"'), "action is set by hactl"),
        (ONE.replace("power_timeout = 30", 'password = "x"'), "would lie open in this file"),
        (ONE.replace("power_timeout = 30", 'plug = "a\\naction=on"'), "text on one line"),
        (ONE.replace("power_timeout = 30", "power_timeout = 1.5"), "text on one line"),
        (ONE.replace("/etc/hactl/bmc.secret", "bmc.secret"), "absolute path"),
    ],
)
def test_wrong_values_are_refused_with_what_to_do(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config(section(text))


def test_the_watchdog_as_a_level_needs_a_watchdog() -> None:
    with pytest.raises(ConfigError, match=r"there is no \[watchdog\]"):
        parse_config(GOOD + '[fencing]\nlevels = ["reservation", "watchdog"]\n')
