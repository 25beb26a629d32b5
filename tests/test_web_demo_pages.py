"""The web demo in a real browser: from page load to a steered answer, and what goes wrong.

The server is a process of its own with the embedded model; the browser is Chromium.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from desk import ROOT
from serving import free_port, until

playwright = pytest.importorskip("playwright.sync_api")

APP = "demo/EasySteer_demo/app.py"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# Python runs it before anything else; it notes each address that the server connects to.
WATCH = """\
import os, socket
connect = socket.socket.connect
def noting(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["CONNECTED_TO"], "a") as file:
            file.write(f"{address[0]}\\n")
    return connect(self, address)
socket.socket.connect = noting
"""
LOCAL = ("127.0.0.1", "::1", "localhost")
VERDICT = "The answers differ|Both answers are the same"
# In the page: asked at each frame, so that no moment is missed.
NO_VERDICT = """verdict => ![...document.querySelectorAll(".report.prose")].some(
    one => one.checkVisibility() && one.innerText.match(verdict))"""
SECONDS = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser is installed ({', '.join(NAMES)})"),
]


@dataclass
class Server:
    """The demo, running.

    Attributes:
        url: The page.
        connected: Addresses that the process has connected to.
    """

    url: str
    connected: Path


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[Server]:
    (folder / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    connected, said = folder / "connected.txt", folder / "said.txt"
    more = {"PYTHONPATH": f"{folder}:{ROOT}", "CONNECTED_TO": str(connected)}
    env = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and "ANALYTICS" not in k}
    with said.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env | more,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url) or process.poll() is not None, SECONDS)
        assert process.poll() is None, said.read_text()
        yield Server(url, connected)
    finally:
        # gradio's command does not end the server that it has started.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        until(lambda: not answers(url), SECONDS)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, APP, "--port", str(port), "device=cpu", "max_text=300"]
    with running(command, port, tmp_path_factory.mktemp("demo")) as it:
        yield it


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@dataclass
class Visitor:
    """Somebody with a browser window.

    Attributes:
        page: Playwright's.
        complaints: What the browser's console has said against the page.
        elsewhere: Addresses asked for that are not the server's.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _request(self, request: Any) -> None:
        if urlsplit(request.url).hostname not in (*LOCAL, None):
            self.elsewhere.append(request.url)

    def seen(self, locator: Any) -> Any:
        return locator.locator("visible=true")

    def field(self, label: str) -> Any:
        return self.seen(self.page.get_by_label(label, exact=True))

    def click(self, name: str) -> None:
        self.seen(self.page.get_by_role("button", name=name, exact=True)).click()

    def choose(self, way: str) -> None:
        self.page.get_by_label(way, exact=True).check()

    def choose_sentiment(self) -> None:
        """The library's vector for sentiment; it brings layer and strength of its own."""
        self.choose("Pre-trained Vectors-based Steering")
        self.field("Steering vector").click()
        self.page.get_by_role("option", name="Warm and positive").click()
        playwright.expect(self.field("Steer layer")).to_have_value("18")

    def tab(self, name: str) -> None:
        tab = self.seen(self.page.get_by_role("tab", name=name))
        if not tab.count():
            # Where it is narrow, tabs that have no room are behind a button.
            self.page.locator(".overflow-menu > button").first.click()
            tab = self.seen(self.page.locator(".overflow-dropdown button", has_text=name))
        tab.click()

    def strength(self, value: float, label: str = "Steer strength") -> None:
        box = self.seen(self.page.get_by_label(f"number input for {label}"))
        box.fill(str(value))
        box.press("Tab")

    def width(self) -> int:
        """Of the whole page, with what is cut off."""
        return self.page.evaluate("document.documentElement.scrollWidth")

    def report(self) -> Any:
        return self.seen(self.page.locator(".report.prose"))

    def answer(self) -> tuple[str, str]:
        """Ask, and wait for both answers and the report."""
        self.start()
        return self.answered()

    def start(self) -> None:
        """Ask, and wait until the report before is gone."""
        self.click("Steer and answer")
        self.page.wait_for_function(NO_VERDICT, arg=VERDICT, timeout=1000 * SECONDS)

    def answered(self) -> tuple[str, str]:
        """Both answers, once there is a report."""
        report = self.report().filter(has_text=re.compile(VERDICT))
        playwright.expect(report).to_have_count(1, timeout=1000 * SECONDS)
        return self.field("Unsteered").input_value(), self.field("Steered").input_value()

    def told(self) -> str:
        """The error that the page shows; it is closed."""
        toast = self.page.locator(".toast-body")
        text = toast.inner_text(timeout=1000 * SECONDS)
        toast.get_by_label("Close", exact=True).click()
        # It fades: the next error is not this one.
        playwright.expect(toast).to_have_count(0)
        return text


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(server: Server, browser: Any) -> Iterator[Visit]:
    """Opens windows of visitors' own; none may complain or ask anybody else."""
    visitors: list[Visitor] = []

    def opened(width: int = 1280, scheme: str = "light") -> Visitor:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        visitor = Visitor(context.new_page())
        visitor.watch()
        visitor.page.goto(server.url)
        visitor.page.get_by_role("button", name="Steer and answer").first.wait_for()
        visitors.append(visitor)
        return visitor

    yield opened
    for visitor in visitors:
        visitor.page.context.close()
    assert [v.complaints for v in visitors] == [[] for _ in visitors]
    assert [v.elsewhere for v in visitors] == [[] for _ in visitors]


# ---- each way, from page load to a steered answer -----------------------------------------------


def test_one_example_steers(visit: Visit):
    visitor = visit()
    visitor.field("Prompt").fill("How do you feel today?")
    visitor.field("Positive completion").fill("I feel wonderful, full of joy and delight!")
    visitor.field("Negative completion").fill("I feel terrible, full of sorrow and despair.")
    visitor.field("Your question").fill("Tell me about your day.")
    plain, steered = visitor.answer()
    assert plain
    assert steered
    assert plain != steered
    assert "layer" in visitor.report().inner_text()


def test_one_click_steers(visit: Visit):
    plain, steered = visit().answer()
    assert plain != steered


def test_a_ready_vector_steers_either_way(visit: Visit):
    visitor = visit()
    visitor.choose_sentiment()
    visitor.field("Your question").fill("What can you say about the new bus line?")
    visitor.strength(2)
    plain, praise = visitor.answer()
    visitor.strength(-2)
    again, blame = visitor.answer()
    assert plain == again
    assert len({plain, praise, blame}) == 3
    visitor.strength(0)
    plain, unsteered = visitor.answer()
    assert plain == unsteered
    assert "Both answers are the same" in visitor.report().inner_text()


def test_a_prompt_steers(visit: Visit):
    visitor = visit()
    visitor.choose("Prompt-based Steering")
    visitor.field("Steering prompt").fill("Answer like a pirate.")
    visitor.field("Your question").fill("How do I boil an egg?")
    plain, steered = visitor.answer()
    assert plain != steered
    assert visitor.field("Steering prompt in force").input_value() == "Answer like a pirate."


def test_a_generated_prompt_is_shown_and_steers(visit: Visit):
    visitor = visit()
    visitor.choose("AutoPrompt-based Steering")
    visitor.field("Concept").fill("pirates")
    visitor.field("Your question").fill("How do I boil an egg?")
    plain, steered = visitor.answer()
    assert plain != steered
    assert "pirate" in visitor.field("Steering prompt in force").input_value().lower()


def test_features_are_found_by_word_added_steered_and_removed(visit: Visit):
    visitor = visit()
    visitor.tab("SAE-based Fine-grained Manipulation")
    visitor.field("Word or phrase").fill("dog animal")
    visitor.click("Search features")
    found = visitor.page.get_by_label(re.compile(r"^\s*\d+: fires on .*(dog|animal)"))
    found.nth(0).check()
    found.nth(1).check()
    visitor.click("Add the ticked features")
    removers = visitor.seen(visitor.page.get_by_role("button", name="Remove"))
    playwright.expect(removers).to_have_count(2)
    visitor.field("Your question").fill("Tell me a short story.")
    plain, with_both = visitor.answer()
    removers.nth(1).click()
    playwright.expect(removers).to_have_count(1)
    again, with_one = visitor.answer()
    assert plain == again
    assert len({plain, with_both, with_one}) == 3


def test_features_are_found_by_a_sentence_and_by_id(visit: Visit):
    visitor = visit()
    visitor.tab("SAE-based Fine-grained Manipulation")
    visitor.tab("From text")
    visitor.field("A sentence").fill("My dog is a good dog. Dogs bark.")
    visitor.click("Which features fire on it?")
    visitor.page.get_by_label(
        re.compile(r"at 'dogs?': \d+: fires on .*dog", re.IGNORECASE)
    ).first.check()
    visitor.click("Add the ticked features")
    removers = visitor.seen(visitor.page.get_by_role("button", name="Remove"))
    playwright.expect(removers).to_have_count(1)
    visitor.tab("By id")
    visitor.page.get_by_label(re.compile("Feature, 0 to")).fill("17")
    visitor.click("Add this feature")
    playwright.expect(removers).to_have_count(2)


# ---- what goes wrong ----------------------------------------------------------------------------


def test_a_mistake_is_told_in_words_and_the_next_answer_comes(visit: Visit):
    visitor = visit()
    visitor.field("Prompt").fill("")
    visitor.click("Steer and answer")
    assert "Prompt is empty: write some text there" in visitor.told()
    visitor.field("Prompt").fill("How do you feel?")
    visitor.field("Positive completion").fill("Same.")
    visitor.field("Negative completion").fill("Same.")
    visitor.click("Steer and answer")
    assert "matching and not_matching are the same text" in visitor.told()
    visitor.field("Negative completion").fill("Sad <img src=x> and low.")
    visitor.strength(60)
    visitor.strength(1)
    plain, steered = visitor.answer()
    assert plain != steered


def test_more_text_than_is_allowed_cannot_be_written(visit: Visit):
    question = visit().field("Your question")
    question.fill("")
    question.press_sequentially("q" * 310)
    assert question.input_value() == "q" * 300


def test_a_word_that_no_feature_knows_is_told(visit: Visit):
    visitor = visit()
    visitor.tab("SAE-based Fine-grained Manipulation")
    visitor.click("Steer and answer")
    assert "no feature is selected" in visitor.told()
    visitor.field("Word or phrase").fill("qqzzqq")
    visitor.click("Search features")
    assert "'qqzzqq'" in visitor.told()
    visitor.tab("By id")
    visitor.page.get_by_label(re.compile("Feature, 0 to")).fill("999999")
    visitor.click("Add this feature")
    assert "must be a number from 0 to 4095" in visitor.told()


def test_an_answer_can_be_stopped(visit: Visit):
    visitor = visit()
    visitor.seen(visitor.page.get_by_role("button", name="Generation settings")).click()
    visitor.strength(256, "Max new tokens")
    visitor.click("Steer and answer")
    playwright.expect(visitor.field("Unsteered")).not_to_have_value("", timeout=1000 * SECONDS)
    visitor.click("Stop")
    visitor.page.wait_for_timeout(1500)
    stopped = visitor.field("Unsteered").input_value()
    visitor.page.wait_for_timeout(1500)
    assert visitor.field("Unsteered").input_value() == stopped
    assert visitor.report().count() == 0


# ---- several visitors ---------------------------------------------------------------------------


def test_two_windows_that_steer_opposite_ways_at_once_stay_apart(visit: Visit):
    def ready(strength: float) -> Visitor:
        visitor = visit()
        visitor.choose_sentiment()
        visitor.field("Your question").fill("What can you say about the new bus line?")
        visitor.strength(strength)
        return visitor

    one, other = ready(2), ready(-2)
    alone = [one.answer(), other.answer()]
    for visitor in (one, other):
        visitor.start()
    together = [visitor.answered() for visitor in (one, other)]
    assert together == alone
    assert together[0][1] != together[1][1]
    assert together[0][0] == together[1][0]


def test_what_one_selects_the_other_does_not_see(visit: Visit):
    one, other = visit(), visit()
    for visitor in (one, other):
        visitor.tab("SAE-based Fine-grained Manipulation")
    one.click("Dogs")
    removers = one.seen(one.page.get_by_role("button", name="Remove"))
    playwright.expect(removers).to_have_count(2)
    assert other.seen(other.page.get_by_role("button", name="Remove")).count() == 0
    other.click("Steer and answer")
    assert "no feature is selected" in other.told()


# ---- files, looks, and who is told --------------------------------------------------------------


def test_the_recipe_and_the_vector_can_be_taken_along(visit: Visit, tmp_path: Path):
    visitor = visit()
    visitor.answer()
    visitor.seen(visitor.page.get_by_role("button", name="Take it along")).click()
    visitor.click("Make files")
    with visitor.page.expect_download(timeout=1000 * SECONDS) as waiting:
        visitor.page.locator("a.download-link[download='steering.zip']").click()
    waiting.value.save_as(tmp_path / "steering.zip")
    with zipfile.ZipFile(tmp_path / "steering.zip") as packed:
        names = packed.namelist()
        assert "steering/vectors/pair/caa_vector/layer_15.pt" in names
        assert b"caa_hparams" in packed.read("steering/recipe.yaml")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_phone_or_a_screen(visit: Visit, width: int, scheme: str):
    visitor = visit(width, scheme)
    visitor.answer()
    assert visitor.width() <= width
    visitor.tab("SAE-based Fine-grained Manipulation")
    visitor.field("Word or phrase").wait_for()
    assert visitor.width() <= width


def test_what_was_asked_does_not_stay_in_the_browser(visit: Visit):
    visitor = visit()
    visitor.field("Your question").fill("What is a zeugma?")
    visitor.answer()
    visitor.page.reload()
    assert "zeugma" not in visitor.page.evaluate("JSON.stringify(localStorage)")


def test_the_server_connects_to_nobody(visit: Visit, server: Server):
    visit().answer()
    found = server.connected.read_text().split() if server.connected.exists() else []
    assert set(found) <= set(LOCAL)


def test_gradios_own_command_starts_it_too(tmp_path: Path, browser: Any):
    port = free_port()
    command = [str(Path(sys.executable).with_name("gradio")), APP, "--", "--port", str(port)]
    with running(command, port, tmp_path) as started:
        page = browser.new_page()
        page.goto(started.url)
        page.get_by_role("button", name="Steer and answer").first.wait_for()
        page.close()
