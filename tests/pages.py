"""Reads the HTML that a study leaves."""
import html.parser


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def read_page(path):
    """(text, [(tag, {attribute: value})]) of an HTML file, whose images are all embedded."""
    text, tags = path.read_text(encoding="utf-8"), _Tags()
    tags.feed(text)
    assert all(attributes["src"].startswith("data:image/") for attributes in images_of(tags.found))
    return text, tags.found


def images_of(tags):
    """The attributes of the images among tags."""
    return [attributes for tag, attributes in tags if tag == "img"]
