"""A reader of the HTML pages the project writes, for the tests of every page."""

from html.parser import HTMLParser

# elements that have no end of their own, or are closed where they are opened
_ALONE = ("meta", "rect", "path")


class Page(HTMLParser):
    """Tags with their attributes, words, and what is still open at the end.

    A tag closed out of order fails at once.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in _ALONE:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
