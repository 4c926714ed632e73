"""Reads the HTML that a study leaves."""
import html.parser


def read_page(path):
    """(text, [(tag, {attribute: value})]) of an HTML file, whose images are all embedded."""
    text, tags, parser = path.read_text(encoding="utf-8"), [], html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(text)
    assert all(attributes["src"].startswith("data:image/") for attributes in images_of(tags))
    return text, tags


def images_of(tags):
    """The attributes of the images among tags."""
    return [attributes for tag, attributes in tags if tag == "img"]
