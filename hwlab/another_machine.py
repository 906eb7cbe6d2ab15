"""Makes the calling process another machine on the client's network. Inlined into scripts that run on the client.

Standard library only: `hwlab.feed.program` puts this text in the place of the line that imports it.
"""

import ctypes
import errno
import os
import subprocess

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
MS_REC_PRIVATE = 0x4000 | 0x40000


def become_another_machine(link: str, own: str, address: str, name: str) -> None:
    """New network, mount and UTS namespaces with an interface `own` on `link`, and another NFS client identity."""
    # Forked before the namespace changes, so it can still see the link of the host.
    script = f"read go && ip link add link {link} name {own} netns {os.getpid()} type macvlan mode bridge"
    helper = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare: " + os.strerror(ctypes.get_errno()))
    libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None)
    helper.communicate(b"go\n", timeout=20)
    if helper.returncode != 0:
        raise OSError(errno.ENODEV, f"no macvlan on {link}")
    for words in (f"addr add {address} dev {own}", f"link set {own} up", "link set lo up"):
        subprocess.run(["ip", *words.split()], check=True, timeout=20)
    libc.sethostname(name.encode(), len(name))
    # sysfs shows the network namespace of whoever mounts it: the identifier below belongs to this one.
    subprocess.run(["mount", "-t", "sysfs", own, "/sys"], check=True, timeout=20)
    with open("/sys/fs/nfs/net/nfs_client/identifier", "w") as identifier:
        identifier.write(name)
