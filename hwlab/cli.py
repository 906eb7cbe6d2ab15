"""The command `hwlab`: parse, call, render. Exit codes: see `Exit`."""

from __future__ import annotations

import dataclasses
import json
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any

import click

from hwlab import faults, strategy, topology
from hwlab.errors import LabError, LabLost, PreconditionError, TopologyError
from hwlab.lab import all_labs, open_lab, remove_lab
from hwlab.paths import PACKAGE_DIR
from hwlab.protocols import Host, Lab, PowerState, Progress


class Exit(IntEnum):
    """Exit codes of hwlab; `exec` returns the status of the remote command instead."""

    OK = 0
    FAILED = 1
    CANNOT = 2
    LOST = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all commands need."""

    lab: str
    as_json: bool

    def progress(self) -> Progress:
        """Progress goes to stderr: stdout is for results."""
        return lambda line: click.echo(line, err=True)

    def show(self, value: object, text: str) -> None:
        """Print a result in the form that was asked for."""
        if self.as_json:
            click.echo(json.dumps(value, indent=2))
        elif text:
            click.echo(text)


@click.group()
@click.option("--lab", default="lab", show_default=True, help="Which lab: several can be up side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON.")
@click.pass_context
def cli(context: click.Context, lab: str, as_json: bool) -> None:
    """A lab of real Linux kernels with a shared disk, and what can happen to it."""
    context.obj = Context(lab=lab, as_json=as_json)


@cli.command()
@click.option("--topology", "name", help="A topology's name (see `hwlab list`) or a path ending in .toml.")
@click.pass_obj
def up(context: Context, name: str | None) -> None:
    """Start the lab's hosts; builds their disk image the first time."""
    lab = open_lab(context.lab, name)
    lab.up(context.progress())
    context.show(_status(lab), f"lab {lab.name} is up: try `hwlab --lab {lab.name} exec n1 -- hostname`")


@cli.command()
@click.option("--topology", "name", help="As for `up`.")
@click.pass_obj
def serve(context: Context, name: str | None) -> None:
    """Bring the lab to a running cluster whose volume the client has mounted; heals what drills left."""
    lab = open_lab(context.lab, name)
    strategy.serve(lab, context.progress())
    context.show(_status(lab), "")


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Remove every lab on this machine.")
@click.pass_obj
def down(context: Context, everything: bool) -> None:
    """Remove the lab with all its processes, networks and disks, whatever state it is in."""
    names = all_labs() if everything else [context.lab]
    for name in names:
        remove_lab(name, context.progress())
    context.show({"removed": names}, "")


@cli.command()
@click.pass_obj
def status(context: Context) -> None:
    """Show the hosts of the lab, their power and their links."""
    value = _status(_existing(context))
    lines = [f"{'HOST':8} {'ROLE':8} {'POWER':8} LINKS"]
    for host in value["hosts"]:
        links = " ".join(f"{network}={state}" for network, state in host["links"].items())
        lines.append(f"{host['name']:8} {host['role']:8} {host['power']:8} {links}")
    context.show(value, "\n".join(lines))


@cli.command("exec")
@click.argument("host")
@click.argument("argv", nargs=-1, required=True)
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds.")
@click.pass_obj
def exec_(context: Context, host: str, argv: tuple[str, ...], timeout_s: float) -> None:
    """Run a command on a host: hwlab exec n1 -- CMD. Returns the command's status."""
    lab = _existing(context)
    data = None if sys.stdin.isatty() else sys.stdin.buffer.read()
    result = _host(lab, host).command.run(argv, input=data, timeout_s=timeout_s, check=False)
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(result.stderr)
    sys.exit(result.status)


@cli.command()
@click.argument("kind")
@click.argument("host")
@click.pass_obj
def fault(context: Context, kind: str, host: str) -> None:
    """Inject a fault, or undo one; `hwlab list` shows the kinds."""
    injected = faults.inject(kind, _host(_existing(context), host))
    took_ms = (injected.monotonic_after - injected.monotonic_before) * 1000
    context.show(dataclasses.asdict(injected), f"{kind} {host}: done in {took_ms:.0f} ms")


@cli.command()
@click.argument("name")
@click.option("--runs", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--duration", "duration_s", type=click.FloatRange(min=1), help="Seconds, for a drill that has a length.")
@click.option("--out", default=Path("build/drills"), show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def drill(context: Context, name: str, runs: int, duration_s: float | None, out: Path) -> None:
    """Play a drill and judge it: 0 valid, 1 invalid, 2 could not begin, 3 unknown. Starts the lab if need be."""
    from hwlab import lunrace
    from hwlab.drill import run_drill
    from hwlab.drillfile import DrillError, load_drill
    from hwlab.labstage import LabStage

    if name == lunrace.NAME:
        code, outcomes = lunrace.play(open_lab(context.lab), context.progress(), out, runs=runs)
        context.show([lunrace.as_dict(each) for each in outcomes], "\n".join(map(lunrace.as_text, outcomes)))
        sys.exit(code)
    try:
        wanted = load_drill(name, duration_s=duration_s).topology
    except DrillError as error:
        raise TopologyError(str(error)) from error
    there = open_lab(context.lab).exists()
    lab = open_lab(context.lab, None if there else wanted or None)
    if wanted and lab.topology.name != wanted:
        has = f"lab {context.lab} has {lab.topology.name}"
        raise LabError(f"drill {name} needs topology {wanted}, {has}: take another --lab")
    stage = LabStage(lab)
    sys.exit(run_drill(name, runs=runs, stage=stage, out_dir=out, as_json=context.as_json, duration_s=duration_s))


@cli.command()
@click.option("--runs", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--out", default=Path("build/bench"), show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def bench(context: Context, runs: int, out: Path) -> None:
    """Measure client stalls and what an idle cluster costs: medians of several runs."""
    from hwlab.bench import run_bench
    from hwlab.labstage import LabStage

    sys.exit(run_bench(LabStage(open_lab(context.lab)), out, runs=runs))


@cli.command("bench-engines")
@click.option("--windows", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--window-s", default=15.0, show_default=True)
@click.option("--kills", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--out", default=Path("build/bench"), show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def bench_engines(context: Context, windows: int, window_s: float, kills: int, out: Path) -> None:
    """Node watch and corosync side by side: packets and CPU of an idle node at the same detection time."""
    from hwlab import enginebench

    lab = open_lab(context.lab, "engines")
    costs = enginebench.run(lab, context.progress(), windows=windows, window_s=window_s, kills=kills)
    out.mkdir(parents=True, exist_ok=True)
    (out / "engines.json").write_text(enginebench.as_json(costs) + "\n")
    context.show(enginebench.as_dict(costs), enginebench.as_text(costs))


@cli.command("bench-fence")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(min=2), help="Takeovers per size.")
@click.option("--luns", "sizes", multiple=True, default=(1, 8, 100), show_default=True, type=click.IntRange(1, 128))
@click.option("--out", default=Path("build/bench"), show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def bench_fence(context: Context, rounds: int, sizes: tuple[int, ...], out: Path) -> None:
    """How long it takes to fence the owner of 1, 8 and 100 LUNs: medians of several takeovers."""
    from hwlab import fencebench

    lab = open_lab(context.lab, "small" if not open_lab(context.lab).exists() else None)
    results = fencebench.run(lab, context.progress(), rounds=rounds, sizes=sizes)
    out.mkdir(parents=True, exist_ok=True)
    (out / "fence.json").write_text(json.dumps(fencebench.as_dict(results), indent=1) + "\n")
    context.show(fencebench.as_dict(results), fencebench.as_text(results))
    sys.exit(Exit.OK if fencebench.kept(results) else Exit.FAILED)


@cli.command("list")
@click.pass_obj
def list_(context: Context) -> None:
    """List labs, drills, topologies and kinds of faults."""
    from hwlab import lunrace

    drills = sorted([lunrace.NAME, *(path.stem for path in (PACKAGE_DIR / "drills").glob("*.toml"))])
    value = {
        "labs": all_labs(),
        "drills": drills,
        "topologies": topology.available(),
        "faults": {fault.kind: fault.description for fault in faults.FAULTS.values()},
    }
    lines = [
        f"labs:       {' '.join(all_labs()) or 'none'}",
        f"topologies: {' '.join(topology.available())}",
        f"drills:     {' '.join(drills)}",
        "faults:",
        *(f"  {fault.kind:16} {fault.description}" for fault in faults.FAULTS.values()),
    ]
    context.show(value, "\n".join(lines))


def _existing(context: Context) -> Lab:
    lab = open_lab(context.lab)
    if not lab.exists():
        raise LabError(f"there is no lab {context.lab!r}: start it with `hwlab --lab {context.lab} up`")
    return lab


def _host(lab: Lab, name: str) -> Host:
    if name not in lab.hosts:
        raise LabError(f"lab {lab.name} has no host {name!r}: take one of {', '.join(lab.hosts)}")
    return lab.hosts[name]


def _status(lab: Lab) -> dict[str, Any]:
    hosts = [
        {
            "name": host.name,
            "role": str(host.role),
            "power": str(host.power.state()),
            "addresses": dict(host.addresses),
            "links": {
                network: str(link.state())
                for network, link in host.links.items()
                if host.power.state() is not PowerState.UNKNOWN
            },
        }
        for host in lab.hosts.values()
    ]
    disks = [dataclasses.asdict(disk) for disk in lab.disks.values()]
    return {"lab": lab.name, "driver": lab.driver, "hosts": hosts, "disks": disks}


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    try:
        cli(standalone_mode=True)
    except (PreconditionError, TopologyError) as error:
        _fail(error, Exit.CANNOT)
    except LabLost as error:
        _fail(error, Exit.LOST)
    except LabError as error:
        _fail(error, Exit.FAILED)


def _fail(error: LabError, code: Exit) -> None:
    click.echo(f"hwlab: {error}", err=True)
    sys.exit(code)
