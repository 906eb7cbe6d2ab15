"""The witness's worker of hactld, on units in memory: what it answers to node watch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fencing.claim import WITNESS_FS
from fencing.fake import FakeLogicalUnit, fake_lun, seed_label
from fencing.label import Label
from fencing.port import Lun
from hactl import witness as module
from hactl.cli import render
from hactl.config import Config
from hactl.record import Records
from hactl.witness import RECORD, Witness, boottime_ms
from nodewatch.config import parse_config

UUID = "5b0c7a4e-3a55-4b7c-9a0e-5a5d3c1f0a11"
WWIDS = ("naa.1", "naa.2", "naa.3")


def config(me: str, luns: int) -> Config:
    nodes = "".join(
        f'[[node]]\nname = "n{number}"\nnumber = {number}\naddress = "10.0.0.{number}"\n' for number in (1, 2)
    )
    head = f'[cluster]\nname = "demo"\nuuid = "{UUID}"\nkey_file = "/k"\n'
    cluster = parse_config(f"{head}{nodes}[witness]\nwwids = {list(WWIDS[:luns])}\n".replace("'", '"'))
    return Config(cluster=cluster, me=me, number=int(me[1:]))


def unit(wwid: str) -> FakeLogicalUnit:
    made = FakeLogicalUnit(name=wwid)
    label = Label(
        cluster_uuid=UUID,
        cluster_name="demo",
        volume="witness",
        volume_uuid="u",
        epoch=1,
        wwids=(wwid,),
        fstype=WITNESS_FS,
        lease_s=1,
        grace_s=1,
        seq=1,
    )
    seed_label(made, label)
    return made


class Bench:
    """Two nodes on the same units; what each told its node watch."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, luns: int) -> None:
        self.units = {wwid: unit(wwid) for wwid in WWIDS[:luns]}
        self.told: dict[str, list[dict[str, Any]]] = {"n1": [], "n2": []}
        self.hung = threading.Event()
        self.hung.set()
        self.seen = {wwid: f"n1:{wwid}" for wwid in self.units}
        monkeypatch.setattr(module, "open_lun", self.open)
        self.nodes = {me: self.node(me, tmp_path / me, luns) for me in ("n1", "n2")}

    def node(self, me: str, path: Path, luns: int) -> Witness:
        return Witness(
            config=config(me, luns),
            records=Records(path, path),
            tell=self.told[me].append,
            devices=lambda: {wwid: f"{me}:{wwid}" for wwid in self.seen},
            log=lambda line: None,
        )

    def open(self, device: str) -> Lun:
        me, _, wwid = device.partition(":")

        def in_use() -> str:
            self.hung.wait()
            return ""

        return fake_lun(self.units[wwid], me.encode(), in_use)

    async def race(self, me: str, ident: int, expected: dict[str, int], *, forced: bool = False) -> dict[str, Any]:
        self.nodes[me].on_order({"t": "race", "id": ident, "expected": expected, "forced": forced})
        task = self.nodes[me]._race
        assert task is not None
        await task
        return self.told[me][-1]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Bench]:
    return lambda luns: Bench(tmp_path, monkeypatch, luns)


def test_a_claim_is_told_and_its_epoch_was_durable_before(bench: Callable[[int], Bench], tmp_path: Path) -> None:
    here = bench(1)
    answer = asyncio.run(here.race("n1", 7, {"naa.1": 1}))
    assert (answer["t"], answer["id"], answer["outcome"], answer["epoch"]) == ("raced", 7, "won", 2)
    assert answer["claimed"] == ["naa.1"]
    assert Records(tmp_path / "n1", tmp_path / "n1").floor(RECORD) == 2


def test_a_claim_from_an_epoch_that_is_past_is_lost_and_says_to_whom(bench: Callable[[int], Bench]) -> None:
    here = bench(1)

    async def both() -> dict[str, Any]:
        await here.race("n1", 1, {"naa.1": 1})
        return await here.race("n2", 1, {"naa.1": 1})

    answer = asyncio.run(both())
    assert answer["outcome"] == "lost"
    assert "epoch 2 of node 1, expected 1" in answer["why"]


def test_most_luns_decide_and_one_that_is_not_seen_does_not_hinder(bench: Callable[[int], Bench]) -> None:
    here = bench(3)
    del here.seen["naa.1"]
    answer = asyncio.run(here.race("n1", 1, dict.fromkeys(WWIDS, 1)))
    assert (answer["outcome"], answer["claimed"]) == ("won", ["naa.2", "naa.3"])
    del here.seen["naa.2"]
    answer = asyncio.run(here.race("n2", 1, dict.fromkeys(WWIDS, 1), forced=True))
    assert (answer["outcome"], answer["claimed"]) == ("unknown", ["naa.3"])


def test_a_lun_that_does_not_answer_makes_the_outcome_unknown(
    bench: Callable[[int], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = bench(1)
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    here.hung.clear()

    async def race() -> dict[str, Any]:
        answer = await here.race("n1", 1, {"naa.1": 1})
        here.hung.set()
        return answer

    assert asyncio.run(race())["outcome"] == "unknown"


def test_a_check_counts_from_before_its_first_command(bench: Callable[[int], Bench]) -> None:
    here = bench(3)

    async def check(epoch: int) -> tuple[int, list[dict[str, Any]]]:
        told = here.told["n1"]
        before = boottime_ms()
        here.nodes["n1"].on_order({"t": "watch", "epoch": epoch})
        await here.nodes["n1"]._check(epoch)
        return before, told[-1:]

    async def story() -> None:
        await here.race("n1", 1, dict.fromkeys(WWIDS, 1))
        before, (held,) = await check(2)
        assert held["t"] == "held"
        assert held["good"]
        assert before <= held["at_ms"] <= boottime_ms()
        await here.race("n2", 1, {}, forced=True)
        _, (gone,) = await check(2)
        assert (gone["t"], gone["good"], gone["epoch"]) == ("held", False, 2)

    asyncio.run(story())


def test_reads_tell_epochs_and_owners_and_name_what_is_wrong(bench: Callable[[int], Bench]) -> None:
    here = bench(3)

    async def story() -> None:
        await here.race("n1", 1, {"naa.1": 1, "naa.2": 1})
        del here.seen["naa.3"]
        await here.nodes["n2"]._read()

    asyncio.run(story())
    told = here.told["n2"][-1]
    assert told["luns"] == {"naa.1": [2, 1], "naa.2": [2, 1]}
    assert told["problem"] == "witness LUN naa.3: this node does not see it"
    shown = here.nodes["n2"].show({"used_by": ["n1"], "state": "idle"})
    assert [lun["claimed_by"] for lun in shown["luns"]] == ["n1", "n1", None]
    assert "used by n1" in render.witness(shown)
