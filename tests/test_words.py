"""Words and code say the same: what the pages name is there, and nothing in them is left to fill in."""

import re
from pathlib import Path

import pytest

from hf_hamspk.geometry_hamspk import HEAD_PARTS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [
    *(README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"),
    *sorted((ROOT / "examples").glob("*.md")),
    *sorted((ROOT / "examples" / "guides").glob("*.md")),
]
# Words of another time, and of people where a program is meant.
UNWANTED = r"\b(?:anew|lest|whoever|needless|in sum|somebody|nobody|hears?|handed over)\b"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_page_for_users = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent != ROOT or page == README], ids=lambda page: page.name
)


@every_page
def test_files_that_a_page_names_exist(page):
    # The old places of the changelog's table are gone on purpose.
    text = re.sub(r"^\|.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = set(re.findall(r"\b(?:examples|hf_hamspk|tests)/[\w/]+\.(?:py|yaml|md)\b", text))
    assert named or page != README
    for name in named:
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", [README, ROOT / "examples" / "guides" / "heads.md"], ids=lambda page: page.name)
def test_every_head_is_named(page):
    text = page.read_text(encoding="utf-8")
    for name in [*HEAD_PARTS, "joint"]:
        assert f"`{name}`" in text, name


@every_page
def test_nothing_is_left_to_fill_in(page):
    assert not re.search(r"PLACEHOLDER|TODO|FIXME", page.read_text(encoding="utf-8"))


@every_page_for_users
def test_the_words_are_plain(page):
    assert re.findall(UNWANTED, page.read_text(encoding="utf-8"), re.IGNORECASE) == []
