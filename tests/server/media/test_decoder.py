"""Decoding in other processes: the same pictures, and nothing that an image does harms anyone else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from server.media.decoder import Decoders
from server.media.files import MediaError, decode_image
from server.settings.decode_memory import DECODING_BYTES
from server.settings.units import MEBI
from server.workers.process import AUTOGROUP, NICENESS
from tests.server.media.test_files import BOMBS, NOT_IMAGES, encoded, gradient
from tests.server.scripted import png
from tests.waiting import WAIT_SECONDS

PIXELS = 1_000_000
MAX_BYTES = 10 * MEBI


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(2, max_bytes=MAX_BYTES, max_pixels=PIXELS, seconds=30)
    yield decoders
    decoders.close()


def process_of(decoders: Decoders) -> psutil.Process:
    """The one process of an idle pool of one."""
    (worker,) = decoders._workers._idle.queue
    assert worker is not None
    return psutil.Process(worker.pid)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_is_the_same_as_decoded_here(decoders: Decoders, kind: str) -> None:
    data = encoded(gradient(317, 203), kind)
    found = decoders.decode(data)
    assert (found.mode, found.size) == ("RGB", (317, 203))
    assert found.tobytes() == decode_image(data, PIXELS).tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="the system limits no memory")
def test_memory_is_limited_by_the_pixels_and_suffices_for_every_format() -> None:
    """Of those measured, WebP with transparency takes most."""
    side, turned = 2000, Image.Exif()
    turned[0x0112] = 6
    transparent = Image.new("RGBA", (side, side), (255, 0, 0, 77))
    noise = Image.effect_noise((side, side), 90)
    files = {
        "WebP": encoded(transparent, "WEBP", lossless=True, exif=turned),
        "WebP, lossy": encoded(Image.merge("RGBA", [noise] * 4), "WEBP", quality=30, method=0),
        "WebP, two frames": encoded(
            transparent, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGBA", (side, side), "#0f05")]
        ),
        "PNG": encoded(transparent, "PNG", exif=turned),
        "PNG, 16 bits": encoded(Image.new("I;16", (side, side), 999), "PNG"),
        "JPEG": encoded(Image.merge("CMYK", [noise] * 4), "JPEG", progressive=True, exif=turned),
        "GIF": encoded(noise, "GIF", transparency=3),
    }
    decoders = Decoders(1, max_bytes=MAX_BYTES, max_pixels=side**2, seconds=30)
    try:
        assert {name: decoders.decode(data).size for name, data in files.items()} == dict.fromkeys(files, (side, side))
        process = process_of(decoders)
        above = process.rlimit(psutil.RLIMIT_AS)[0] - process.memory_info().vms
        assert above < DECODING_BYTES * side**2 + 3 * MAX_BYTES + 64 * MEBI
        with pytest.raises(MediaError):
            decoders.decode(b"x" * (DECODING_BYTES * side**2 + 100 * MEBI))  # a file of far more than was said
    finally:
        decoders.close()


def test_many_threads_each_get_their_own_picture(decoders: Decoders) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: decoders.decode(png(n, 3)).size, range(1, 60)))
    assert found == [(n, 3) for n in range(1, 60)]


@pytest.mark.parametrize("name", [*BOMBS, *NOT_IMAGES])
def test_a_refused_image_says_what_it_says_here(decoders: Decoders, name: str) -> None:
    data = BOMBS[name]() if name in BOMBS else NOT_IMAGES[name]
    with pytest.raises(MediaError) as expected:
        decode_image(data, PIXELS)
    with pytest.raises(MediaError) as found:
        decoders.decode(data)
    assert str(found.value) == str(expected.value)


def test_a_process_that_dies_is_replaced() -> None:
    decoders = Decoders(1, max_bytes=MAX_BYTES, max_pixels=PIXELS, seconds=30)
    try:
        decoders.decode(png())
        process = process_of(decoders)
        process.send_signal(signal.SIGSEGV)
        process.wait(WAIT_SECONDS)
        with pytest.raises(MediaError, match="breaks its decoder"):
            decoders.decode(png())
        assert decoders.decode(png()).size == (8, 8)
    finally:
        decoders.close()


def test_a_process_that_gives_no_answer_is_killed_in_time() -> None:
    decoders = Decoders(1, max_bytes=MAX_BYTES, max_pixels=PIXELS, seconds=30)
    try:
        decoders.decode(png())
        process = process_of(decoders)
        process.suspend()
        decoders._seconds = 0.05
        with pytest.raises(MediaError, match="too much time"):
            decoders.decode(png())
        assert not psutil.pid_exists(process.pid)
    finally:
        decoders.close()


@pytest.mark.chance
def test_closing_ends_the_idle_ones_now_and_the_others_with_their_work() -> None:
    decoders = Decoders(1, max_bytes=MAX_BYTES, max_pixels=30_000_000, seconds=30)
    decoders.decode(png())
    process = process_of(decoders)
    process.suspend()
    found: list[Image.Image] = []
    thread = threading.Thread(target=lambda: found.append(decoders.decode(png(9, 9))))
    thread.start()
    while not decoders._workers._idle.empty():
        os.sched_yield()
    decoders.close()
    process.resume()
    thread.join(WAIT_SECONDS)
    assert [image.size for image in found] == [(9, 9)]
    assert not psutil.pid_exists(process.pid)


@pytest.mark.chance
def test_the_processes_of_a_killed_server_end_by_themselves() -> None:
    program = (
        "import sys, time\nfrom server.media.decoder import Decoders\nfrom tests.server.scripted import png\n"
        "d = Decoders(1, max_bytes=9999, max_pixels=100, seconds=9); d.decode(png())\n"
        "print(d._workers._idle.queue[0].pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        decoder = psutil.Process(int(server.stdout.readline()))
        server.kill()
        psutil.wait_procs([decoder], timeout=WAIT_SECONDS)
    assert not decoder.is_running()


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="sessions have no share of the cores of their own")
def test_a_process_gives_way_as_a_session_too(decoders: Decoders) -> None:
    decoders.decode(png())
    worker = next(each for each in decoders._workers._idle.queue if each is not None)
    assert f"nice {NICENESS}" in Path(f"/proc/{worker.pid}/autogroup").read_text()


def test_a_process_has_no_secrets_no_signals_of_the_terminal_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOSTEER_SECRET", "s3cret")
    decoders = Decoders(1, max_bytes=MAX_BYTES, max_pixels=PIXELS, seconds=30)
    try:
        decoders.decode(png())
        process = process_of(decoders)
        assert not any("SECRET" in name for name in process.environ())
        assert os.getsid(process.pid) == process.pid
        assert process.nice() > psutil.Process().nice()
        assert process.num_fds() <= 6
    finally:
        decoders.close()
