"""What a kernel's trace tells of the order of writes. The lines are Linux 7.3's own."""

from pathlib import Path

from hwlab import witness, writeorder
from hwlab.feed import program

TRACE = """\
# tracer: nop
#
# entries-in-buffer/entries-written: 4/4   #P:1
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
    kworker/0:1H-70      [000] d....   149.100001: block_rq_issue: 254,32 WS 4096 () 6288 + 8 none,0,0 [kworker/0:1H]
          <idle>-0       [000] d.h1.   149.100400: block_rq_complete: 254,32 WS () 6288 + 8 none,0,0 [0]
    kworker/0:1H-70      [000] d....   149.100500: block_rq_issue: 254,32 R 4096 () 2048 + 8 none,0,0 [kworker/0:1H]
    kworker/u4:3-123     [000] d....   149.112345: block_rq_issue: 254,32 WFS 4096 () 2048 + 8 none,0,0 [kworker/u4:3]
"""


def test_issued_and_done_writes_are_told_in_the_kernels_order_and_reads_left_out() -> None:
    assert writeorder.parse_trace(TRACE) == [
        {"at": 149_100_001_000, "done": False, "offset": 6288 * 512, "length": 4096},
        {"at": 149_100_400_000, "done": True, "offset": 6288 * 512, "length": 4096},
        {"at": 149_112_345_000, "done": False, "offset": 1 << 20, "length": 4096},
    ]


def test_an_order_of_which_the_kernel_lost_some_is_none() -> None:
    assert writeorder.parse_trace(TRACE.replace("4/4", "4/16")) is None
    assert writeorder.parse_trace("") is None


def test_what_is_no_disk_has_no_order(tmp_path: Path) -> None:
    plain = tmp_path / "disk"
    plain.write_bytes(b"")
    assert writeorder.write_order(str(plain)) is None


def test_the_witness_takes_the_module_along() -> None:
    text = program(Path(witness.__file__))
    assert "class WriteOrder" in text
    compile(text, "witness", "exec")
