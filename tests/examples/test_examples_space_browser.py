"""The Space in headless Chromium: two files uploaded, the verdict read from the page. No package beside the model."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from strangers import without
from tiny_models import RATE

from hf_hamspk import HamSpkModel
from hf_hamspk.data.synthetic import make_speech

pytestmark = pytest.mark.slow
PATIENCE = 180
# As a user starts it, but where this package cannot be imported.
STRANGER = (
    without("hf_hamspk")
    + """
import runpy, sys
sys.path.insert(0, ".")
sys.argv = ["app.py", *sys.argv[1:]]
runpy.run_path("app.py", run_name="__main__")
"""
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --no-proxy-server --window-size=1100,1700"
)
PROXIES = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")]
# Read in one step, as the page may draw itself anew between two.
VERDICT = "return document.querySelector('#verdict .verdict')?.innerText.replace(/\\s+/g, ' ') ?? ''"
PICTURE = "const image = document.querySelector('#histogram img'); return image?.complete ? image.src : ''"
PICTURE_WIDTH = "return document.querySelector('#histogram img').naturalWidth"


@pytest.fixture(scope="module", autouse=True)
def no_proxy() -> Iterator[None]:
    """The page is on this machine: no proxy is asked for it, by the driver, by gradio or here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PROXIES:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def page(no_proxy, space, model_folder, tmp_path_factory) -> Iterator[str]:
    """Address of the running Space."""
    pytest.importorskip("gradio", reason="the extra 'space' is absent")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "app.log"
    environment = os.environ | {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    environment |= {"OMP_NUM_THREADS": "1", "MODEL": str(model_folder), "GRADIO_TEMP_DIR": str(log.parent / "uploads")}
    with open(log, "w") as out:
        app = subprocess.Popen([sys.executable, "-c", STRANGER], cwd=space, env=environment, stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: app.poll() is not None or answers(address))
        assert app.poll() is None, log.read_text()
        yield address
    finally:
        app.terminate()
        app.wait()


@pytest.fixture(scope="module")
def browser(no_proxy, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is absent")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is absent: the page of the Space is not driven")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_for(condition):
    """The first true value of a condition."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing within {PATIENCE} s")
        time.sleep(0.2)
    return found


def upload(browser, recording: str, path: Path) -> None:
    """Give a file to one of the two fields, and wait until the page has it."""
    field = wait_for(lambda: browser.find_elements("css selector", f"#{recording} input[type=file]"))[0]
    field.send_keys(str(path))
    wait_for(lambda: browser.find_elements("css selector", f"#{recording} button[aria-label='Play']"))


def verdict_of(browser, before: str = "") -> str:
    """The text of the verdict, once it is another one than before."""
    return wait_for(lambda: (text := browser.execute_script(VERDICT)) != before and text)


def test_two_files_are_uploaded_and_the_verdict_is_read(browser, page, model_folder, tmp_path):
    files = []
    for i, seconds in enumerate((3.0, 3.5)):
        files.append(tmp_path / f"{i}.wav")
        soundfile.write(files[-1], make_speech(i, i, seconds, RATE), RATE)
    waves = [soundfile.read(path, dtype="float32")[0] for path in files]
    expected = HamSpkModel.from_pretrained(model_folder).verifier().verify(waves[:1], waves[1], RATE)

    browser.get(page)
    button = wait_for(lambda: browser.find_elements("css selector", "#compare"))[0]
    button.click()
    nothing = verdict_of(browser)
    assert nothing.startswith("No answer") and "Two recordings are needed" in nothing

    empty = wait_for(lambda: browser.execute_script(PICTURE))
    for recording, path in zip(("first", "second"), files, strict=True):
        upload(browser, recording, path)
    button.click()
    text = verdict_of(browser, nothing)
    assert text.lower().startswith(expected.decision)
    assert f"log-likelihood ratio is {expected.log_likelihood_ratio:.2f}" in text
    assert f"score (cosine) {expected.score:.4f}" in text and "“balanced”" in text
    wait_for(lambda: browser.execute_script(PICTURE) not in ("", empty))
    assert browser.execute_script(PICTURE_WIDTH) > 300
    assert "of the pairs of one speaker scored lower" in browser.find_element("css selector", "#histogram-note").text
    picture_file = os.environ.get("SCREENSHOT")
    if picture_file is not None:
        browser.save_screenshot(picture_file)
    outside = [entry["name"] for entry in browser.execute_script("return performance.getEntriesByType('resource')")]
    assert all(name.startswith((page, "data:", "blob:")) for name in outside), "the page asks nobody else"
