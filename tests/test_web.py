"""The page in headless Chromium: what a person does with it, with the server and with one that answers on command.

Every test also fails on anything that the page's strict policy refuses, on a script error, and on a request that goes
anywhere but to its server.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from page_stub import MARKUP, WEB, Stub
from PIL import Image, ImageDraw

from pumice.vision.kinds import open_media
from pumice.vision.layout import POCKET, layout

sync_api = pytest.importorskip("playwright.sync_api", reason="driving the page needs: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to show the page with")
expect = sync_api.expect
EXPECTED = "Failed to load resource"  # the browser's own line for a status that a test asked for
SHOWN = "The total is 3.69 \N{EURO SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
DARK, LIGHT = "rgb(23, 25, 27)", "rgb(246, 245, 242)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server in a window of its own, and holds it to its policy until the test ends."""
    contexts, faults = [], []

    def log(message: Any) -> None:
        if message.type in ("error", "warning") and EXPECTED not in message.text:
            faults.append(message.text)

    def open_page(server: Any, **options: Any) -> Any:
        context = browser.new_context(viewport=options.pop("viewport", {"width": 1100, "height": 800}), **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("console", log)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((server.url, "blob:", "data:")) else faults.append(asked.url),
        )
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def serve() -> Iterator[Callable[..., Stub]]:
    servers = []

    def start(*models: str, **options: Any) -> Stub:
        servers.append(Stub(models or ("alpha",), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def picture(size: tuple[int, int] = (300, 500), kind: str = "PNG") -> bytes:
    image = Image.new("RGB", size, "#fbf7ee")
    draw = ImageDraw.Draw(image)
    for y in range(20, size[1] - 20, 28):
        draw.rectangle((20, y, 20 + (y * 7919) % max(1, size[0] - 60) + 20, y + 9), fill="#354a5f")
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"save_all": True, "append_images": [image] * 5} if kind == "PDF" else {}))
    return buffer.getvalue()


def film(frames: int = 12) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=Fraction(4))
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for index in range(frames):
            image = Image.new("RGB", (96, 64), (20 * index, 90, 255 - 20 * index))
            container.mux(video.encode(av.VideoFrame.from_image(image)))
        container.mux(video.encode())
    return buffer.getvalue()


def file(name: str, data: bytes, kind: str = "") -> dict[str, Any]:
    return {"name": name, "mimeType": kind or "application/octet-stream", "buffer": data}


def ask(page: Any, question: str) -> Any:
    """Asks and returns the newest answer, when it has ended."""
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    answer = page.locator("article").last.locator(".answer").last
    expect(answer).to_have_attribute("aria-busy", "false", timeout=30_000)
    return answer


def test_upload_ask_and_stream(serve, visit):
    server = serve()
    page = visit(server)
    data = picture((500, 300))
    page.locator("#files").set_input_files(file("invoice.png", data, "image/png"))
    shape = layout((500, 300), POCKET)
    expect(page.locator("#tray figcaption")).to_contain_text(f"{shape.tokens:,} visual tokens, 11% of the")
    assert server.bodies("/v1/chat/completions") == []  # counted before anything is paid
    page.evaluate("""() => { window.seen = new Set();
      new MutationObserver(() => window.seen.add(document.querySelector('.text')?.textContent ?? ''))
        .observe(document.getElementById('turns'), {childList: true, subtree: true, characterData: true}); }""")
    answer = ask(page, "How much?")
    expect(answer.locator(".text")).to_have_text(SHOWN)
    assert {"The ", "The total", "The total is 3."} <= set(page.evaluate("[...window.seen]"))  # as it came
    expect(answer).to_contain_text(
        f"{shape.tokens + 20:,} tokens read ({shape.tokens:,} visual ones) · 8 tokens written"
    )
    [body] = server.bodies("/v1/chat/completions")
    part, text = body["messages"][0]["content"]
    assert base64.b64decode(part["image_url"]["url"].partition(",")[2]) == data
    assert text == {"type": "text", "text": "How much?"}
    assert (body["model"], body["stream"], body["temperature"], body["max_tokens"]) == ("alpha", True, 0, 256)


def test_the_tiling_is_the_layouts(serve, visit):
    page = visit(serve())
    page.locator("#files").set_input_files(file("tall.png", picture((300, 500)), "image/png"))
    drawing = page.locator("#tray .tiling")
    shape = layout((300, 500), POCKET)
    assert shape.overview
    left = shape.tile * 9 / 8
    expect(drawing).to_have_attribute("viewBox", f"0 0 {left + shape.cols * 224:g} {shape.rows * 224}")
    images = drawing.locator("image")
    assert images.count() == 2
    overview, pasted = (
        [float(images.nth(i).get_attribute(name)) for name in ("x", "y", "width", "height")] for i in (0, 1)
    )
    assert overview == [0, 0, 224, 224]
    assert pasted == [*shape.offset, *shape.resized]
    cells = drawing.locator(".tokens").get_attribute("d")
    assert (cells.count("v"), cells.count("h")) == (shape.map[1] - 1, shape.map[0] - 1)
    assert drawing.locator(".cuts").get_attribute("d").count("M") == shape.cols - 1 + shape.rows - 1
    assert drawing.locator(".dropped").count() == 1  # a 3:5 picture leaves canvas beside it that no token stands for


def test_a_conversation_has_a_history(serve, visit):
    server = serve()
    page = visit(server)
    page.locator("#files").set_input_files(
        [file("a.png", picture(), "image/png"), file("b.png", picture((90, 60)), "image/png")]
    )
    expect(page.locator("#cost")).to_contain_text("Files:")
    ask(page, "First")
    ask(page, "flood")  # refused: no answer to remember, so the question isn't either
    page.locator("#files").set_input_files(file("c.png", picture((60, 90)), "image/png"))
    answer = ask(page, "Third")
    messages = server.bodies("/v1/chat/completions")[-1]["messages"]
    kinds = [[part["type"] for part in m["content"]] if m["role"] == "user" else m["content"] for m in messages]
    assert kinds[0] == ["image_url", "image_url", "text"]
    assert kinds[1] == SHOWN
    assert kinds[-1] == ["image_url", "text"]
    answer.get_by_role("button", name="Again").click()
    expect(page.locator("article").last.locator(".answer")).to_have_attribute("aria-busy", "false")
    first, second = server.bodies("/v1/chat/completions")[-2:]
    assert first == second
    assert page.get_by_role("button", name="Again").count() == 1  # of the last question alone
    page.get_by_role("button", name="New").click()
    assert page.locator("article").count() == 0
    ask(page, "Fresh")
    assert len(server.bodies("/v1/chat/completions")[-1]["messages"]) == 1


def test_an_answer_that_failed_halfway_is_remembered_as_far_as_it_came(serve, visit):
    server = serve()
    page = visit(server)
    ask(page, "fail")
    ask(page, "Next")
    messages = server.bodies("/v1/chat/completions")[-1]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "The total"


def test_stop_keeps_what_came_and_tells_the_server(serve, visit):
    server = serve()
    page = visit(server)
    page.get_by_label("Question", exact=True).fill("slow")
    page.keyboard.press("Enter")
    expect(page.locator(".text")).to_contain_text("alpha alpha")
    before = page.locator("#stop").bounding_box()
    page.get_by_role("button", name="Stop").click()
    answer = page.locator(".answer")
    expect(answer).to_have_attribute("aria-busy", "false")
    expect(answer).to_contain_text("stopped")
    assert server.left.wait(5)
    assert answer.locator(".text").text_content().startswith("alpha alpha")
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    assert page.locator("#send").bounding_box() == before  # the buttons change places without moving anything
    expect(ask(page, "After").locator(".text")).to_have_text(SHOWN)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("flood", ["Too many requests with this key", "60 requests a minute", "Try again in 7 seconds", "req-1"]),
        ("long", ["More than the model can read at once", "9,000 tokens; the model reads 8,192"]),
        ("odd", ["Refused with status 500", "The server failed on this request"]),
        ("cut", ["No connection", "ended before the answer was complete", "The total"]),
        ("fail", ["The engine stopped", "The total"]),
    ],
)
def test_errors_are_shown_as_what_they_are(question, says, serve, visit):
    page = visit(serve())
    answer = ask(page, question)
    assert answer.get_by_role("alert").count() == 1
    for words in says:
        expect(answer).to_contain_text(words)
    assert answer.get_by_role("button", name="Again").is_visible()
    expect(ask(page, "And now").locator(".text")).to_have_text(SHOWN)


def test_a_server_that_is_gone(serve, visit):
    server = serve()
    page = visit(server)
    expect(page.locator("#model")).to_be_enabled()
    server.shutdown()
    server.server_close()
    expect(ask(page, "Anyone?")).to_contain_text("can't be reached")


def test_files_that_cannot_be_used_say_why(serve, visit):
    page = visit(serve())
    page.locator("#files").set_input_files(file("broken.png", b"\x89PNG\r\n\x1a\n rubbish", "image/png"))
    expect(page.locator("#tray .failed .facts")).not_to_be_empty()
    page.get_by_role("button", name="Remove broken.png").click()
    expect(page.locator("#tray")).to_be_hidden()
    page.locator("#files").set_input_files(file("notes.docx", b"PK"))
    expect(page.get_by_role("alert")).to_contain_text("notes.docx is neither a picture nor a PDF nor a video")


def test_the_key_is_asked_for_and_forgotten_with_the_tab(serve, visit):
    server = serve(key="pk-123")
    page = visit(server)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("wants an API key")
    alert.get_by_role("button", name="Enter a key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("pk-123")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_be_enabled()
    expect(ask(page, "Now").locator(".text")).to_have_text(SHOWN)
    assert "pk-123" not in page.evaluate("JSON.stringify(localStorage)")


def test_pdf_by_dropping_and_video_by_pasting(serve, visit):
    server = serve()
    page = visit(server)
    pdf, clip = picture((400, 560), "PDF"), film()
    give = """([event, name, type, data]) => {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name, {type}));
      const options = {bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer};
      const node = document.body;
      if (event === 'paste') return node.dispatchEvent(new ClipboardEvent('paste', options));
      node.dispatchEvent(new DragEvent('dragover', options));
      window.hinted = !document.getElementById('drop').hidden;
      node.dispatchEvent(new DragEvent('drop', options));
    }"""
    page.evaluate(give, ["drop", "report.pdf", "application/pdf", base64.b64encode(pdf).decode()])
    assert page.evaluate("window.hinted")
    expect(page.locator("#drop")).to_be_hidden()
    page.evaluate(give, ["paste", "clip.mp4", "video/mp4", base64.b64encode(clip).decode()])
    papers, clips = page.locator("#tray .medium").all()
    expect(papers).to_contain_text("6 pages")
    assert [sheet.is_visible() for sheet in papers.locator(".page").all()] == [True] * 4 + [False] * 2
    expect(papers.locator(".view").first.locator("image")).to_have_count(1)  # the first page on top of the sheets
    expect(papers.locator(".page").nth(5).locator("image")).not_to_have_count(0)
    expect(clips).to_contain_text(f"8 frames of 384 {TIMES} 384 pixels")
    expect(clips.locator(".tiling image")).to_have_count(8)  # the browser's own frames of the film
    ask(page, "What is it?")
    shown = page.locator("article .page")
    assert all(sheet.is_visible() for sheet in shown.all())
    shape = layout(open_media(pdf)[0].size, POCKET)
    expect(shown.nth(5)).to_contain_text(f"6: {shape.tokens:,} visual tokens")
    assert len(server.bodies("/v1/previews")) == 1
    content = server.bodies("/v1/chat/completions")[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["file", "video_url", "text"]
    assert content[0]["file"]["filename"] == "report.pdf"
    assert base64.b64decode(content[0]["file"]["file_data"].partition(",")[2]) == pdf
    assert base64.b64decode(content[1]["video_url"]["url"].partition(",")[2]) == clip


def test_answers_are_text(serve, visit):
    page = visit(serve())
    answer = ask(page, "markup")
    expect(answer.locator(".text")).to_have_text(MARKUP)
    assert answer.locator("b, img, script").count() == 0
    assert page.title() == "Pumice"


def test_confidence_on_hover_and_by_keyboard(serve, visit):
    page = visit(serve())
    answer = ask(page, "How sure?")
    answer.get_by_text("69", exact=True).hover()
    tip = page.get_by_role("tooltip")
    expect(tip).to_contain_text("“69”")
    expect(tip).to_contain_text("22.3%")  # exp(-1.5)
    expect(tip).to_contain_text("13.5%")  # exp(-2), the other's
    answer.get_by_text("\N{EURO SIGN}", exact=True).hover()
    expect(tip).to_contain_text("1.5%")  # a character of two tokens: exp(-2.1 - 2.1)
    answer.get_by_role("button", name="Confidence").press("Enter")
    tokens = answer.get_by_role("option")
    assert tokens.count() == 8
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_accessible_name("“to” 74.1%")
    expect(tip).to_contain_text("74.1%")
    answer.get_by_role("button", name="Confidence").click()
    assert answer.get_by_role("option").count() == 0


SPLIT = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "tokens", "parts"),
    [
        ("one two", ["one", " t", "wo"], ["one", " t", "wo"]),
        ("a\u6f22b", ["a", SPLIT, SPLIT, SPLIT, "b"], ["a", "\u6f22", "b"]),  # a sign for each part of one character
        ("\u00e9", [b"\xc3", b"\xa9"], ["\u00e9"]),
        ("ab", ["a", "bEND", "more"], ["a", "b"]),  # a stop text, and what follows it, isn't shown
        ("ab", ["a", "<|im_end|>", "b"], ["a", "b"]),
        (f"a{SPLIT}", ["a", b"\xe6"], ["a", SPLIT]),
        ("ab", ["a", "c"], None),
        ("abc", ["a", "b"], None),
    ],
)
def test_tokens_are_laid_along_the_text(text, tokens, parts, serve, visit):
    page = visit(serve())
    given = [{"token": str(t), "bytes": list(t if isinstance(t, bytes) else t.encode()), "logprob": -1} for t in tokens]
    script = "async ([text, tokens]) => (await import('./tokens.js')).align(text, tokens)?.map((part) => part.text)"
    assert page.evaluate(script, [text, given]) == parts


def test_copy(serve, visit):
    page = visit(serve(), permissions=["clipboard-read", "clipboard-write"])
    ask(page, "Copy me").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == SHOWN


def test_two_models_beside_each_other_keep_their_own_history(serve, visit):
    server = serve("alpha", "beta")
    page = visit(server)
    page.get_by_label("Compare with").select_option("beta")
    page.get_by_label("Question", exact=True).fill("slow")
    page.keyboard.press("Enter")
    expect(page.locator(".text").nth(1)).to_contain_text("beta beta")
    boxes = [answer.bounding_box() for answer in page.locator(".answer").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]
    page.get_by_role("button", name="Stop").click()
    ask(page, "Next")
    for body in server.bodies("/v1/chat/completions")[-2:]:
        assert body["messages"][1]["content"].startswith(f"{body['model']} {body['model']}")
    page.get_by_label("Model", exact=True).select_option("beta")
    assert page.get_by_label("Compare with").input_value() == ""  # never with itself


def test_one_model_has_nothing_to_be_compared_with(serve, visit):
    page = visit(serve())
    expect(page.locator("#model")).to_be_enabled()
    expect(page.get_by_label("Compare with")).to_be_hidden()


def test_settings_reach_the_request(serve, visit):
    server = serve()
    page = visit(server)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System text").fill("Answer in one word.")
    page.get_by_label("Temperature").fill("3")
    page.get_by_label("Longest answer").fill("40")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Stop texts").fill("\\n\nEND")
    page.get_by_label("JSON schema").fill('{"type": "object"')
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_label("Temperature")).to_be_focused()  # the first of two that are wrong
    expect(page.locator("#schema-help")).to_contain_text("Not JSON")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("JSON schema").fill('{"type": "object"}')
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.reload()  # kept
    ask(page, "Go")
    body = server.bodies("/v1/chat/completions")[0]
    assert body["messages"][0] == {"role": "system", "content": "Answer in one word."}
    assert (body["temperature"], body["max_tokens"], body["seed"], body["stop"]) == (0.5, 40, 7, ["\n", "END"])
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert body["response_format"] == schema
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed").fill("8")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    ask(page, "Again")
    assert server.bodies("/v1/chat/completions")[1]["seed"] == 7  # Escape changes nothing


def test_evidence_is_marked_where_a_model_has_it(serve, visit):
    server = serve(evidence=True)
    page = visit(server)
    page.get_by_role("button", name="How much was paid").click()
    button = page.get_by_role("button", name="Evidence")
    button.click()
    box, image = page.locator(".evidence rect").bounding_box(), page.locator("article img").bounding_box()
    assert box["x"] == pytest.approx(image["x"] + image["width"] / 2, abs=4)
    assert box["y"] == pytest.approx(image["y"] + 0.7 * image["height"], abs=4)
    [body] = server.bodies("/v1/evidence")
    assert body["answer"] == SHOWN
    assert [part["type"] for part in body["messages"][-1]["content"]] == ["image_url", "text"]
    button.click()
    assert page.locator(".evidence").count() == 0


def test_evidence_is_marked_on_pages_and_frames(serve, visit):
    """Media count pages: the PDF's fifth, then the video; its third frame."""
    server = serve(evidence=True)
    server.regions = [
        {"media": 4, "box": [0, 0.5, 0.5, 1], "weight": 0.6},
        {"media": 6, "frame": 2, "box": [0.5, 0, 1, 0.5], "weight": 0.4},
    ]
    page = visit(server)
    files = [file("report.pdf", picture((400, 560), "PDF")), file("clip.mp4", film(), "video/mp4")]
    page.locator("#files").set_input_files(files)
    expect(page.locator("#tray .facts").last).to_contain_text("8 frames")
    expect(page.locator("#tray .page image")).not_to_have_count(0)
    ask(page, "Where?").get_by_role("button", name="Evidence").click()
    expect(page.locator(".mark")).to_have_count(2)
    assert page.locator(".page").nth(4).locator(".mark").count() == 1
    expect(page.locator(".page").nth(4)).to_be_in_viewport()  # scrolled to within the strip
    cells = page.locator(".medium").nth(1).locator(".tiling > svg")
    cell, mark = cells.nth(2).locator(".edge").bounding_box(), cells.nth(2).locator(".mark").bounding_box()
    assert mark["x"] == pytest.approx(cell["x"] + cell["width"] / 2, abs=4)
    assert mark["y"] >= cell["y"] - 4
    expect(page.get_by_role("status")).to_have_text("2 regions marked: report.pdf page 5, clip.mp4 frame 3")


def test_a_pdf_without_small_pictures_is_numbered_sheets(serve, visit):
    server = serve()
    server.previews = False
    page = visit(server)
    page.locator("#files").set_input_files(file("report.pdf", picture((400, 560), "PDF")))
    expect(page.locator("#tray .page").first).to_contain_text("1")
    assert page.locator("#tray image").count() == 0
    expect(ask(page, "Well?").locator(".text")).to_have_text(SHOWN)


def test_no_evidence_where_a_model_has_none(serve, visit):
    page = visit(serve())
    page.get_by_role("button", name="How much was paid").click()
    expect(page.get_by_role("button", name="Copy")).to_be_visible()
    assert page.get_by_role("button", name="Evidence").count() == 0


@pytest.mark.parametrize(("system", "before", "after"), [("light", LIGHT, DARK), ("dark", DARK, LIGHT)])
def test_dark_follows_the_system_until_it_is_switched(system, before, after, serve, visit):
    page = visit(serve(), color_scheme=system)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == before
    switch = page.get_by_role("button", name="Dark")
    expect(switch).to_have_attribute("aria-pressed", str(system == "dark").lower())
    switch.click()
    assert page.evaluate(ground) == after
    page.reload()
    assert page.evaluate(ground) == after
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) == before
    assert page.evaluate("localStorage.getItem('pumice.theme')") is None  # the system decides again


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(serve, visit):
    page = visit(serve("alpha", "a-model-with-a-rather-long-name-of-its-own"), viewport={"width": 320, "height": 640})
    page.locator("#files").set_input_files(file("x" * 80 + ".png", picture(), "image/png"))
    expect(page.locator("#tray .facts")).to_contain_text("visual tokens")
    page.get_by_label("Compare with").select_option(index=2)
    wide = "document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(wide)
    ask(page, "W" * 200)
    assert not page.evaluate(wide)
    for box in [one.bounding_box() for one in page.locator("button:visible, select:visible, textarea:visible").all()]:
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 320
    page.get_by_role("button", name="Settings").click()
    dialog = page.get_by_role("dialog").bounding_box()
    assert dialog["x"] >= 0
    assert dialog["x"] + dialog["width"] <= 320
    assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")


def test_keyboard_alone(serve, visit):
    page = visit(serve())
    expect(page.locator("#model")).to_be_enabled()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the question")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the question")).to_be_in_viewport()
    reached = []
    for _ in range(10):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert reached[:4] == ["model", "new", "settings-open", "theme"]
    assert [re.sub(r"\s+", " ", name) for name in reached[4:7]] == [
        "How much was paid in all?",
        "What is Distance for Cambodia?",
        "What colour is the cherry?",
    ]
    assert reached[7:] == ["attach", "question", "send"]
    page.get_by_role("button", name="What colour").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false")
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="One line and another")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text(f"alpha: {SHOWN}")  # what a screen reader hears, once
    assert page.locator("article").count() == 2


def test_nothing_jumps(serve, visit):
    page = visit(serve())
    expect(page.locator("#model")).to_be_enabled()
    page.evaluate("""() => { window.shift = 0; new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
    }).observe({type: 'layout-shift', buffered: true}); }""")
    page.get_by_role("button", name="How much was paid").click()
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false")
    page.wait_for_timeout(600)  # shifts within half a second of a click don't count: look at those after
    ask(page, "And the date?")
    page.wait_for_timeout(200)
    assert page.evaluate("window.shift") < 0.02


@pytest.fixture(scope="module")
def real(tokenizer) -> Iterator[Any]:
    """The server itself, with two tiny random models."""
    pytest.importorskip("openai")
    from serve_client import make_assistant, running

    with running(make_assistant(tokenizer)) as served:
        yield served


def test_every_kind_of_file_with_the_real_server(real, visit):
    page = visit(real)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("40")
    page.get_by_role("button", name="Done").click()
    page.locator("#files").set_input_files(
        [
            file("photo.png", picture((90, 60)), "image/png"),
            file("report.pdf", picture((200, 100), "PDF"), "application/pdf"),
            file("clip.mp4", film(), "video/mp4"),
        ]
    )
    photo, papers, clip = page.locator("#tray .medium").all()
    expect(photo).to_contain_text(f"2 {TIMES} 2 tiles of 28 pixels and an overview")
    expect(papers).to_contain_text("6 pages")
    expect(clip).to_contain_text(f"frames of 28 {TIMES} 28 pixels")
    visual = [int(re.search(r"([\d,]+) visual", one.inner_text())[1].replace(",", "")) for one in (photo, papers, clip)]
    page.get_by_label("Compare with").select_option("other")
    ask(page, "What are these?")
    answers = page.locator(".answer").all()
    for answer in answers:
        expect(answer).to_have_attribute("aria-busy", "false")
        expect(answer).to_contain_text(f"({sum(visual)} visual ones")
        assert answer.locator(".error").count() == 0
    texts = [answer.locator(".text").text_content() for answer in answers]
    assert texts[0] == texts[1]  # the same model under two names
    assert answers[0].locator(".token").count() > 1
    assert page.get_by_role("button", name="Evidence").count() == 2
    again = ask(page, "And now?")  # the history with all its files is known from before
    assert int(re.search(r"([\d,]+) tokens known", again.inner_text())[1].replace(",", "")) >= sum(visual)


def test_stop_and_errors_with_the_real_server(real, visit):
    page = visit(real)
    page.locator("#files").set_input_files(file("broken.png", b"\x89PNG\r\n\x1a\n rubbish", "image/png"))
    expect(page.locator("#tray .failed .facts")).not_to_be_empty()
    expect(ask(page, "What is this?")).to_contain_text("A file that can't be read")
    real.pace[0] = 0.1
    page.get_by_label("Question", exact=True).fill("Anything")
    page.keyboard.press("Enter")
    expect(page.locator(".text").last).to_contain_text(re.compile(r"(?!reading)[^\0]{10}"))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer").last).to_contain_text("stopped")
    page.wait_for_timeout(500)
    assert real.idle()  # the engine has let go of it
    real.pace[0] = 0.0
    assert ask(page, "Still there?").locator(".error").count() == 0


def test_the_page_needs_nothing_from_elsewhere():
    sources = {
        path.name: path.read_text() for path in Path(str(WEB)).iterdir() if path.suffix in (".html", ".css", ".js")
    }
    assert len(sources) > 5
    for name, text in sources.items():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
    assert not re.search(r"\son\w+=|style=|<style|<script(?![^>]*src=)", sources["index.html"])
