"""Names that others chose, as a terminal, a drawing or a page may show them. Pure."""


def plain(text: str) -> str:
    """Control characters, and others that are not seen (bidi marks, odd spaces), as Python escapes.

    Also halves of surrogate pairs, which stand for bytes that are not UTF-8 (os.fsdecode()).
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text)
