"""The served page follows a real sweep, answers on the loopback address only, and refuses to write."""

from __future__ import annotations

import http.client
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import world
from browser import chromium, opened
from conftest import command

from taskvec import cli
from taskvec.report.page.follow import Progress, Standing, progress
from taskvec.runner import sweeps
from taskvec.runner.folder import RunFolder

pytestmark = pytest.mark.page
pytest.importorskip("plotly")


@contextmanager
def served(outputs: Path) -> Iterator[str]:
    """The address of a server over an outputs folder."""
    words = ["report", "--serve", "--port", "0", "--outputs", str(outputs)]
    command = [sys.executable, "-m", "taskvec", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[0]
    finally:
        process.send_signal(signal.SIGTERM)  # an interrupt is ignored under nohup
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0 and said == ""


def asked(address: str, method: str, path: str = "/", host: str | None = None) -> int:
    """The status of an answer."""
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=60)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    return connection.getresponse().status


def test_it_follows_a_sweep_of_four_runs(tiny: Path, outputs: Path):
    with chromium() as browser, served(outputs) as address:
        page = opened(browser, address)
        page.page.evaluate("window.here = true")
        assert page.page.locator("#table tbody tr").count() == 0
        jobs = ("merge=task_arithmetic,average", "finetune.lr=3e-3,1e30")
        done = command(tiny, *world.FAST, f"outputs={outputs}", "-m", *jobs, timeout=600)
        assert done.returncode == 1, done.stderr
        said = page.page.locator("#progress [role=status]")
        text = "4 of 4 runs ended, 2 done, 2 failed"
        page.until(f"document.querySelector('#progress').innerText.includes('{text}')")
        page.until("document.querySelectorAll('#table tbody tr').length == 8")
        assert said.inner_text() == text and "lower the learning rate" in page.page.content()
        assert page.page.evaluate("window.here"), "without a reload"
        assert {url.partition("?")[0] for url in page.requests} == {
            f"{address}{path}" for path in ("", "progress", "content")
        }
        assert page.problems == []


def test_it_answers_to_its_own_name_and_only_to_be_read(warm_outputs: Path):
    with served(warm_outputs) as address:
        host, _, port = address.split("/")[2].partition(":")
        assert host == "127.0.0.1"
        before = sorted((warm_outputs / "runs").rglob("*"))
        assert [asked(address, method) for method in ("POST", "PUT", "PATCH", "DELETE")] == [
            405
        ] * 4
        assert asked(address, "GET", host="example.org") == 403
        assert asked(address, "GET", "/../status.json") == 404
        assert asked(address, "HEAD") == asked(address, "GET", "/progress") == 200
        assert sorted((warm_outputs / "runs").rglob("*")) == before
        impatient = socket.create_connection((host, int(port)))
        linger = struct.pack("ii", 1, 0)
        impatient.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        impatient.sendall(b"GET / HTTP/1.1\r\nHost: ")
        impatient.close()  # with a reset
        assert asked(address, "HEAD") == 200
        for other in addresses():
            with pytest.raises(OSError), socket.create_connection((other, int(port)), timeout=5):
                pass


def addresses() -> list[str]:
    """This machine's addresses but the loopback's."""
    _, _, found = socket.gethostbyname_ex(socket.gethostname())
    return [address for address in found if not address.startswith("127.")]


def test_a_taken_port_is_one_line(warm_outputs: Path, capsys: pytest.CaptureFixture):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ["report", "--serve", "--port", port, "--outputs", str(warm_outputs)]
        assert cli.main(words) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_time_left_follows_from_the_runs_that_ended(tmp_path: Path):
    done, waiting = Standing("a", "done", "", 30.0), Standing("b", "waiting")
    found = Progress([done, Standing("c", "failed", "why", 50.0), *[waiting] * 4], 0.0, 2)
    assert found.left == 40 * 4 / 2 and found.said.endswith("about 1 min left")
    assert Progress([waiting], 0.0, 1).left is None
    assert Progress([done], 0.0, 1).left == 0


def test_a_sweep_says_what_it_will_run(tmp_path: Path):
    folders = [RunFolder(tmp_path / "runs" / name) for name in ("one", "two")]
    sweeps.record(folders, jobs=3)
    found = sweeps.latest(tmp_path)
    assert found.runs == ("one", "two") and found.jobs == 3
    (tmp_path / "sweeps" / "9999.json").write_text("{")
    assert sweeps.latest(tmp_path) == found
    assert [run.state for run in progress(tmp_path).runs] == ["waiting", "waiting"]
