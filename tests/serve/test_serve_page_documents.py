"""The page's view of documents: searched, heated by word, added to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .browser import Server, Tab, axe_source, browser_fixture, tab_of  # skips without playwright

# isort: split
from PIL import Image
from playwright.sync_api import Browser, Page

from paligemma.retrieval.index import PageIndex
from paligemma.scenes import draw_scene
from paligemma.serve.library import Library, Shelf
from paligemma.serve.options import ServerOptions
from tests.retrieval.random_colpali import random_colpali

QUERY = "a red star"
NUM_PAGES = 3

browser = pytest.fixture(scope="module")(browser_fixture())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pages")
    for seed in range(NUM_PAGES):
        picture = Image.fromarray(draw_scene(seed).image)
        picture.resize((300, 400)).save(folder / f"scene-{seed}.png")

    def open_shelf() -> Shelf:
        index = PageIndex.open("memory://", random_colpali(seed=5, dim=32))
        index.add(folder)
        return Shelf(name="library", index=index, uploads=tmp_path_factory.mktemp("uploads"))

    found = Server(Library(open_shelf, ServerOptions()))
    yield found
    found.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    with tab_of(browser, server) as found:
        yield found


def search(page: Page, query: str = QUERY) -> None:
    page.fill("#documents input[type=search]", query)
    page.press("#documents input[type=search]", "Enter")
    page.wait_for_selector("#documents .hit")


def test_pages_are_found_and_each_word_shows_its_own_heat(tab: Tab) -> None:
    page = tab.open("documents")
    page.wait_for_selector("#documents >> text=library: 3 pages")
    with page.expect_response("**/v1/search") as answered:
        search(page)
    hits = answered.value.json()["hits"]
    cards = page.locator("#documents .hit b").all_inner_texts()
    assert cards == [f"{k}. {hit['file']}" for k, hit in enumerate(hits, start=1)]
    assert page.locator("#documents .words label").all_inner_texts() == [
        "any word",
        "a",
        "red",
        "star",
        "nothing",
    ]
    heat = page.locator("#documents .heat").first
    page_box = page.locator("#documents .seen img").first.bounding_box()
    assert heat.bounding_box() == page_box
    layers = page.locator("#documents .heat")
    expected = {"any word": [hit["heat"]["any"] for hit in hits]}
    for k, word in enumerate(("a", "red", "star")):
        expected[word] = [hit["heat"]["words"][k] for hit in hits]
    for word, addresses in expected.items():
        page.get_by_label(word, exact=True).check()
        assert [one.get_attribute("src") for one in layers.all()] == addresses
    page.get_by_label("nothing").check()
    assert heat.is_hidden()
    page.keyboard.press("ArrowLeft")
    assert heat.get_attribute("src") == expected["star"][0]
    assert heat.is_visible()


def test_the_best_page_is_read_on_request(tab: Tab) -> None:
    page = tab.open("documents")
    search(page)
    assert page.locator("#documents .page-answer").is_hidden()
    page.get_by_label("Read the best page and answer").check()
    with page.expect_response(
        lambda one: (
            one.url.endswith("/v1/search") and '"answers":1' in (one.request.post_data or "")
        )
    ) as answered:
        page.click("#documents button[type=submit]")
    best = answered.value.json()["hits"][0]
    page.wait_for_selector("#documents .page-answer b")
    text = " ".join(best["answer"].split()) or "(the answer is empty)"
    shown = page.locator("#documents .page-answer").inner_text()
    assert shown == f"{text} from {best['file']}, page {best['page']}"
    page.wait_for_selector("#documents .status:has-text('3 of 3 pages in')")


def test_pages_are_added_beside_files_that_cannot_be_read(tab: Tab, tmp_path: Path) -> None:
    new, broken = tmp_path / "new.png", tmp_path / "broken.png"
    Image.fromarray(draw_scene(40).image).save(new)
    broken.write_bytes(b"no picture")
    page = tab.open("documents")
    page.wait_for_selector("#documents >> text=Add pages")
    page.set_input_files("#documents input[type=file]", [new, broken])
    page.wait_for_selector("#documents .status:has-text('Added 1 page. broken.png: ')")
    page.wait_for_selector("#documents >> text=library: 4 pages")
    search(page)
    assert page.locator("#documents .hit b", has_text="new.png").count() == 1


def test_an_empty_query_is_marked_and_a_refused_one_is_a_sentence(tab: Tab) -> None:
    page = tab.open("documents")
    page.click("#documents button[type=submit]")
    field = page.locator("#documents input[type=search]")
    assert field.get_attribute("aria-invalid") == "true"
    page.route("**/v1/search", lambda route: route.fulfill(status=503, body=""))
    page.fill("#documents input[type=search]", QUERY)
    page.click("#documents button[type=submit]")
    page.wait_for_selector("#documents [role=alert]:has-text('try again soon')")
    assert page.is_enabled("#documents button[type=submit]")


def test_a_server_without_an_index_shows_how_to_make_one(browser: Browser, plain: Server) -> None:
    with tab_of(browser, plain) as tab:
        page = tab.open("documents")
        page.wait_for_selector("#documents >> text=paligemma serve --index library")
        assert page.locator("#documents form").is_hidden()


@pytest.mark.parametrize("width", [320, 1280])
def test_the_view_fits(browser: Browser, server: Server, width: int) -> None:
    with tab_of(browser, server, viewport={"width": width, "height": 800}) as tab:
        page = tab.open("documents")
        search(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_view_has_no_fault_of_accessibility(
    browser: Browser, server: Server, scheme: str
) -> None:
    source = axe_source()
    with tab_of(browser, server, color_scheme=scheme) as tab:
        page = tab.open("documents")
        search(page)
        page.evaluate(source)
        found = page.evaluate("axe.run().then(r => r.violations.map(v => v.id))")
        assert found == []


def test_the_keyboard_leads_from_the_query_to_the_words(tab: Tab) -> None:
    page = tab.open("documents")
    search(page)  # ends in the field, which keeps the focus
    focus = "(e => e.labels?.[0]?.innerText ?? e.innerText)(document.activeElement)"
    reached = []
    while len(reached) < 6 and "any word" not in reached:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focus))
    assert (reached[0], reached[-1]) == ("Search", "any word")
    heat = page.locator("#documents .heat").first
    before = heat.get_attribute("src")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focus) == "a"
    assert heat.get_attribute("src") != before
