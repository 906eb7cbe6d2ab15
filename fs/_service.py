"""VolumeService: one volume on this node, step by step.

Every method blocks, may be repeated, and is called by the one worker thread of the volume. What is there is
always looked up in the kernel, never remembered, so that a new daemon goes on with what an earlier one left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from fs import _exportd, clients
from fs._address import ServedAddress
from fs._assemble import Assembly
from fs._attendant import Attendant
from fs._defence import Defence
from fs._exportd import ExportResponder
from fs._mount import MountPoint, is_free
from fs._namespace import Namespace, is_namespace
from fs._nfsd import Server
from fs._tickle import PeerFile, Tickler, connected
from fs._tracking import Tracker, read_recorded
from fs.errors import FsError, NotPossible
from fs.export import Export
from fs.handover import Step
from fs.model import Did, Gate, GraceStatus, Mounted, Observed, Tracking, VolumeSpec
from fs.peers import Peer
from fs.stack import Stack

# After the first one at once. A lost frame costs the client seconds of TCP backoff, a repeated one nothing.
_ANNOUNCE_AGAIN_MS = (100, 400)
_TICKLE_AGAIN_MS = (150, 500)
_START_ATTEMPTS = 2


class VolumeService:
    def __init__(self, spec: VolumeSpec) -> None:
        self.spec = spec
        self._namespace = Namespace(spec.name)
        self._server = Server(spec)
        self._mount = MountPoint(spec, self._server.run)
        stack = spec.stack or Stack.of("", spec.name, "", (spec.device,))
        self._assembly = Assembly(stack)
        self._tracker = Tracker(spec.name, self._server.pipefs, self._mount.database, self._server.run / "nfsdcld.log")
        self._attendant = Attendant(spec.name)
        self._responder = ExportResponder(spec.name, self._attendant)
        self._address = ServedAddress(spec, self._namespace)
        self._defence = Defence(
            spec.name, self._attendant, mine=self._address.is_here, announce=self._address.announce_once
        )
        self._tickler = Tickler(spec)
        self._peer_file = PeerFile(self._mount.private)
        self._peers: frozenset[Peer] = frozenset()

    # -- in advance ----------------------------------------------------------------------------------------

    def prepare(self) -> Did:
        """Everything that needs neither the disk nor the right to serve."""
        with self._did(Step.PREPARE) as did:
            did.changed(self._namespace.pin())
            did.changed(self._assembly.prepare())
            did.changed(self._namespace.make_link(self.spec.interface))
            did.changed(self._server.prepare())
            self._address.open_sockets()
            self._address.defend(self._defence)
            self._tickler.open_socket()
            did.changed(self._tracker.prepare())
        return did.result

    def observe(self) -> Observed:
        """What is there. Reads only."""
        self._namespace.enter()
        return Observed(
            namespace=is_namespace(self._namespace.path),
            link_up=self._namespace.link_up(),
            control=self._server.mounted(),
            mounted=self._mount.mounted(),
            damaged=self._mount.damaged(),
            device_free=is_free(self.spec.device),
            tracking=self._tracker.state(),
            nfsd_threads=self._server.threads(),
            listening=self._server.listening(),
            responder=self._responder.running,
            address_left_s=self._address.left_s(),
        )

    # -- taking --------------------------------------------------------------------------------------------

    def mount(self) -> Did:
        """The caller holds every disk. Returns with the journal replayed and the known clients read."""
        with self._did(Step.MOUNT) as did:
            did.changed(self._mount.mounted() is not Mounted.OURS)
            joined = self._assembly.assemble()
            did.note("; ".join(filter(None, (joined, self._mount.mount()))))
            self._peers = self._peer_file.load()
        return did.result

    def damaged(self) -> bool:
        """Whether the mounted file system shut itself down after an error. No disk I/O."""
        return self._mount.damaged()

    def start_tracking(self) -> Did:
        """nfsdcld runs. Waits for it only under a running server, which start_nfsd() would not look at again."""
        with self._did(Step.START_TRACKING) as did:
            did.changed(self._tracker.start())
            if self._server.threads():
                self._tracker.wait_ready()
        return did.result

    def start_nfsd(self) -> Did:
        """Grace begins here. On a running server only the export responder is opened again."""
        with self._did(Step.START_NFSD) as did:
            self._check_ready_for_nfsd()
            did.changed(self._answer_exports())
            if not self._server.threads():
                self._start_threads()
                did.changed(True)
            did.changed(self._relisten())
        return did.result

    def _check_ready_for_nfsd(self) -> None:
        name = self.spec.name
        if self._mount.mounted() is not Mounted.OURS:
            raise NotPossible(name, "its file system is not mounted", "call mount() first")
        if self._server.threads() == 0 and self._tracker.pid() is None:
            raise NotPossible(name, "nfsdcld does not run: locks would be lost", "call start_tracking() first")

    def _answer_exports(self) -> bool:
        exported = Export.of(self.spec, str(self._mount.export))
        return self._responder.start(exported, [host for host, _ in self._peers])

    def _start_threads(self) -> None:
        """Without its tracking attached the kernel serves all the same and records nothing: then anew.

        The first attempt does not wait for nfsdcld: the kernel itself looks for it every 100 ms for a
        second, and nobody is served before the address is there, so a start without tracking does no harm
        as long as it is noticed here.
        """
        for attempt in range(_START_ATTEMPTS):
            if attempt:
                self._tracker.wait_ready()
            self._server.configure()
            self._server.listen()
            self._server.set_threads(self.spec.threads)
            if self._tracker.state() is Tracking.ATTACHED:
                return
            self._server.set_threads(0)
        raise FsError(
            self.spec.name,
            f"nfsd started {_START_ATTEMPTS} times without its client tracking",
            f"stop_tracking(), start_tracking() and try again; see {self._tracker.log}",
        )

    def _relisten(self) -> bool:
        if self._server.listening():
            return False
        self._server.listen()
        return True

    def add_address(self) -> Did:
        """For one lifetime. The caller holds the lease and has somebody renew it by gate()."""
        with self._did(Step.ADD_ADDRESS) as did:
            did.changed(self._address.add())
        return did.result

    def answered_elsewhere(self) -> bool:
        """Does another node still answer under the served address? Valid after prepare()."""
        self._namespace.enter()
        return self._address.answered_elsewhere()

    def announce(self) -> Did:
        """The address is there: tells the neighbours, at once and then again in the background."""
        with self._did("announce") as did:
            self._address.route_out()
            self._address.announce_once()
            for delay_ms in _ANNOUNCE_AGAIN_MS:
                self._attendant.later(delay_ms, self._address.announce_once)
            did.changed(True)
        return did.result

    def tickle(self) -> Did:
        """Wakes the clients of the previous owner: at once, then those that are still not back."""
        with self._did("tickle") as did:
            sent = self._tickler.send(self._peers)
            for delay_ms in _TICKLE_AGAIN_MS:
                self._attendant.later(delay_ms, self._tickle_again)
            did.changed(sent > 0)
            did.note(f"{sent} of {len(self._peers)} clients")
        return did.result

    def _tickle_again(self) -> None:
        self._tickler.send(self._peers)

    def gate(self) -> Gate:
        """Valid after prepare()."""
        self._namespace.enter()
        return self._address.gate()

    # -- serving -------------------------------------------------------------------------------------------

    def save_peers(self) -> Did:
        """Only what is seen while the address is there: without it the connections only look gone. Until grace
        has ended the clients of the previous owner stay in the file: there may be a next failure."""
        with self._did("save_peers") as did:
            if self._address.left_s() is not None and self._mount.mounted() is Mounted.OURS:
                now = connected()
                if self._server.in_grace():
                    now |= self._peer_file.load()
                did.changed(self._peer_file.save(now))
                did.note(f"{len(now)} connected")
        return did.result

    def grace_status(self, gone: frozenset[str] = frozenset()) -> GraceStatus:
        """`gone`: names of clients (as in .waiting) that the caller knows will not come back."""
        self._namespace.enter()
        recorded = read_recorded(self._mount.database / "main.sqlite")
        return clients.status(self._server.in_grace(), recorded, self._server.clients(), gone)

    def end_grace(self, gone: frozenset[str] = frozenset()) -> Did:
        with self._did("end_grace") as did:
            status = self.grace_status(gone)
            if status.active and not status.may_end:
                raise NotPossible(
                    self.spec.name,
                    f"grace must go on: still to reclaim: {', '.join(status.waiting) or 'unknown'}",
                    "wait, or name the clients that are known to be gone",
                )
            if status.active:
                self._server.end_grace()
                did.changed(True)
        return did.result

    def expire_client(self, name: str) -> Did:
        """Takes a client's state away at once. Only for one that is known to be gone or fenced."""
        with self._did("expire_client") as did:
            for client in self._server.clients():
                if client.label == name:
                    self._server.expire(client)
                    did.changed(True)
        return did.result

    # -- giving --------------------------------------------------------------------------------------------

    def remove_address(self) -> Did:
        with self._did(Step.REMOVE_ADDRESS) as did:
            self._attendant.forget()
            did.changed(self._address.remove())
        return did.result

    def stop_nfsd(self) -> Did:
        with self._did(Step.STOP_NFSD) as did:
            if self._server.threads() or self._server.listening():
                self._server.set_threads(0)
                did.changed(True)
            self._responder.close()
            _exportd.flush()
        return did.result

    def stop_tracking(self) -> Did:
        with self._did(Step.STOP_TRACKING) as did:
            did.changed(self._tracker.stop())
        return did.result

    def unmount(self, force: bool = False) -> Did:
        """Afterwards nobody on this node holds the partitions, or it says who."""
        with self._did(Step.UNMOUNT) as did:
            if self._assembly.assembled() or self._mount.mounted() is not Mounted.NO:
                did.changed(self._mount.unmount(force))
            did.changed(self._assembly.disassemble())
        return did.result

    # -- all of it -----------------------------------------------------------------------------------------

    def perform(self, step: Step) -> Did:
        """The method of that name; a damaged file system is unmounted by force."""
        methods: dict[Step, Callable[[], Did]] = {
            Step.PREPARE: self.prepare,
            Step.MOUNT: self.mount,
            Step.START_TRACKING: self.start_tracking,
            Step.START_NFSD: self.start_nfsd,
            Step.ADD_ADDRESS: self.add_address,
            Step.REMOVE_ADDRESS: self.remove_address,
            Step.STOP_NFSD: self.stop_nfsd,
            Step.STOP_TRACKING: self.stop_tracking,
            Step.UNMOUNT: lambda: self.unmount(force=self._mount.damaged()),
        }
        return methods[step]()

    def close(self) -> None:
        """The daemon ends: this process's descriptors go, everything that serves stays. Any thread."""
        self._responder.close()
        self._attendant.close()
        self._tracker.dismiss_helper()
        self._address.close()
        self._tickler.close()
        self._namespace.leave()

    def dismantle(self) -> Did:
        """The volume leaves this node for good. Refused while it is served or mounted."""
        with self._did("dismantle") as did:
            seen = self.observe()
            if seen.nfsd_threads or seen.mounted is not Mounted.NO or seen.address_left_s is not None:
                raise NotPossible(self.spec.name, "it is still in use on this node", "give it first")
            self._tracker.dismiss_helper()
            self._server.dismantle()
            self._namespace.remove()
            did.changed(True)
        return did.result

    def _did(self, step: Step | str) -> _Doing:
        self._namespace.enter()
        return _Doing(step.value if isinstance(step, Step) else step)


class _Doing(contextlib.AbstractContextManager["_Doing"]):
    """Measures one step and collects what it says."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._changed = False
        self._note = ""
        self._began = time.monotonic()
        self._ended = self._began

    def changed(self, changed: bool) -> None:
        self._changed = self._changed or changed

    def note(self, note: str) -> None:
        self._note = note

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()

    @property
    def result(self) -> Did:
        took_ms = (self._ended - self._began) * 1000
        return Did(step=self._step, changed=self._changed, took_ms=took_ms, note=self._note)
