"""Formulas of docstrings, typeset.

Docstrings write code and formulas between single backticks, as one reads them in a terminal:
`tau`, `bw.until.gap(1e-6)`, `L_tau(W) = BW^2(W W^T + tau I, Sigma0)`. `is_formula` tells them apart
and `tex` spells a formula for TeX.
"""

import re

LETTERS = """
alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi
omega Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega
"""
UPRIGHT = "tr rank diag sym polar BW Var Gr grad cov mean argmin softmax ceil atan"
GREEK = frozenset(LETTERS.split())
FUNCTIONS = {f: rf"\{f}" for f in ("log", "exp", "min", "max", "det", "sum", "int", "sup", "inf")}
FUNCTIONS |= {name: rf"\operatorname{{{name}}}" for name in UPRIGHT.split()}
WORDS = FUNCTIONS | {"eps": r"\varepsilon", "sqrt": r"\sqrt", "not": r"\not"}
SIGNS = {
    "<=": r"\le",
    ">=": r"\ge",
    "!=": r"\ne",
    "->": r"\to",
    "<-": r"\leftarrow",
    "...": r"\dots",
    "..": r",\dots,",
    "||": r"\|",
    "~": r"\sim",
    "*": r"\,",
}
NAMES = re.compile(r"[a-z_]\w*(, [a-z_]\w*)+")
TOKEN = re.compile(
    r"(?P<word>[A-Za-z]+(?:_[A-Za-z]{3,}[A-Za-z_]*)+|[A-Za-z]+)(?P<digits>\d*)"
    r"|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)"
    r"|(?P<sign><=|>=|!=|->|<-|\.\.\.|\.\.|\|\|)"
    r"|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_ANY = "|".join(sorted(GREEK))
INDEXED = re.compile(rf"\b({_ANY}|[A-Za-z](?=_(?:{_ANY}|min|max)\b))_([A-Za-z]{{2,}})\b")
MATHEMATICAL = re.compile(
    r"\^|_\{|\)_\+| [-+/*=<>~x] | [<>]= | -> | <- |\|\||^-\w|^\|.*\|$|^[<\[(].*[>\])]$"
)
NOT_MATHEMATICAL = re.compile(
    r'"|--|==|[A-Za-z_]\.[A-Za-z_]|^\w+(\(\))?$|\(\.\.\.|^<name>|^\.|: ?$'
)


def is_formula(text: str) -> bool:
    """Whether this is mathematics rather than code."""
    text = INDEXED.sub(r"\1_{\2}", text)
    bare = re.sub(r"\{[^{}]*\}", "", text)
    if NOT_MATHEMATICAL.search(text) or re.search(r"\w=[\w(]", bare):
        return bool(re.fullmatch(r"[A-Za-z]\d|[A-Z]", text))
    names = re.findall(r"[A-Za-z]+(?:_[A-Za-z]{3,}[A-Za-z_]*)+|[A-Za-z]{2,}", text)
    foreign = [name for name in names if name not in WORDS and name not in GREEK]
    if re.fullmatch(r"[\[(][\w, .]*[\])]", text):  # a shape, or arguments
        return not foreign
    if re.match(r"\w{2,}\(", text) and foreign:  # a call
        return False
    return bool(MATHEMATICAL.search(text)) or (not foreign and bool(re.search(r"[ _(|'*]", text)))


def tex(text: str) -> str:
    """A formula as TeX."""
    text = INDEXED.sub(r"\1_{\2}", " ".join(text.split()))
    text = re.sub(r"(?<=[\w)}]) x (?=[\w(])", r" TIMES ", text)
    text = re.sub(r" not in ", " NOTIN ", text)
    text = re.sub(r" in ", " IN ", text)
    text = re.sub(r"(?<=[\w}'])\*(?=\^(\w|\{))\^\{?(\w)\}?", r"^{STAR \2}", text)
    text = re.sub(r"(?<=[\w})'])\*(?=$|[\s)\],_'|>}(])", r"^{STAR}", text)
    found = " ".join(_translated(text).split())
    # Words keep their distance; spaces between symbols are TeX's.
    found = re.sub(r"(\\text(?:tt)?\{[^}]*\}) (?=[\w\\(])", r"\1\\ ", found)
    return re.sub(r"(?<=[\w})]) (?=\\text(?:tt)?\{)", r"\\ ", found)


def _translated(text: str, inside: bool = False) -> str:
    """Spell part of a formula; `inside` an index `<` and `>` are relations."""
    parts, at = [], 0
    while at < len(text):
        char = text[at]
        if char in "^_" and at + 1 < len(text):
            group, at = _script(text, at + 1)
            parts.append(f"{char}{{{_translated(group, inside=True)}}}")
            continue
        if (found := re.match(r"sqrt(?=[(|])", text[at:])) is not None:
            close = _closing(text, at + 4)
            body = text[at + 5 : close]
            body = _translated(body, inside)
            parts.append(rf"\sqrt{{{body}}}" if text[at + 4] == "(" else rf"\sqrt{{|{body}|}}")
            at = close + 1
            continue
        found = TOKEN.match(text, at)
        assert found is not None
        parts.append(_token(found, text, inside))
        at = found.end()
    return "".join(parts)


def _script(text: str, at: int) -> tuple[str, int]:
    """What is raised or lowered, and where it ends."""
    if text[at] in "({":
        close = _closing(text, at)
        body = text[at + 1 : close]
        return body, close + 1
    found = re.compile(r"-?[A-Za-z]+|-?\d+|.", re.DOTALL).match(text, at)
    assert found is not None
    return found.group(), found.end()


def _closing(text: str, at: int) -> int:
    """Index of the bracket that closes the one at this index."""
    pairs = {"(": ")", "{": "}", "[": "]", "|": "|"}
    opening, closing, depth = text[at], pairs[text[at]], 0
    for i in range(at, len(text)):
        if opening != closing and text[i] == opening:
            depth += 1
        elif text[i] == closing and i > at:
            depth -= 1 if opening != closing else 0
            if depth == 0:
                return i
    raise ValueError(f"no {closing} closes {text[at:]!r}.")


def _token(found: re.Match[str], text: str, inside: bool) -> str:
    kind, piece = found.lastgroup, found.group()
    if found["word"]:
        word, digits = found["word"], found["digits"]
        index = rf"_{{{digits}}}" if digits else ""
        placed = {"TIMES": r"\times ", "IN": r"\in ", "NOTIN": r"\notin ", "STAR": "* "}
        if word in placed:
            return placed[word]
        if word in GREEK:
            return rf"\{word}{index} "
        if word in WORDS:
            return f"{WORDS[word]} "
        if len(word) == 1 or re.fullmatch("d[A-Za-z]", word):  # a differential among them
            return f"{word}{index}"
        if inside and "_" not in word and (len(word) <= 2 or digits):
            return word + digits
        name = word.replace("_", r"\_")
        return (r"\texttt{%s}" if "_" in word else r"\text{%s}") % name + index
    if kind == "sign":
        return f"{SIGNS[piece]} "
    if kind == "space":
        return " "
    if piece in "{}":
        return f"\\{piece}"
    if piece in "<>" and not inside:
        return _angle(found, text)
    return SIGNS.get(piece, piece)


def _angle(found: re.Match[str], text: str) -> str:
    """A bracket of an inner product where it touches what is in it, else a relation."""
    before, after = text[: found.start()][-1:], text[found.end() :][:1]
    if found.group() == "<" and after.strip() and not before.strip(" ([-/+0123456789"):
        return r"\langle "
    if found.group() == ">" and before.strip():
        return r"\rangle "
    return found.group()


def displayed(lines: list[str]) -> list[str]:
    """Docstring lines, in which what is set off by indentation is a formula, or text."""
    found: list[str] = []
    block: list[str] = []
    for line in [*lines, ""]:
        starts = bool(block) or (
            line.startswith("    ") and found[-1:] == [""] and _is_prose(found)
        )
        if starts and (line.startswith("    ") or not line.strip()):
            block.append(line)
            continue
        found += _display(block)
        block = []
        found.append(line)
    return [*found, *_display(block)][: None if block else -1]


def _is_prose(lines: list[str]) -> bool:
    """Whether what came before is a paragraph, and not a list, a directive or a section."""
    before = next((line for line in reversed(lines) if line.strip()), "    ")
    return not before.startswith((" ", "-", "*", "..", ">>>")) and not before.endswith("::")


def _display(block: list[str]) -> list[str]:
    body = [line.strip() for line in block if line.strip()]
    if not body:
        return block
    if len(body) == 1 and is_formula(body[0]):
        parts = re.split(r"\s{2,}", body[0].replace(" (x) ", " TENSOR "))
        typeset = r"\qquad ".join(tex(part) for part in parts).replace(r"\text{TENSOR}", r"\otimes")
        return [".. math::", "", f"    {typeset}", ""]
    return [".. code-block:: text", "", *block]


def setup(app):
    """Single backticks in docstrings are formulas, names of the library, or code."""
    from docutils import nodes
    from sphinx import addnodes

    def role(name, rawtext, text, lineno, inliner, options=None, content=None):
        text = text.replace("\x00", "\\")
        if is_formula(text):
            return [nodes.math(rawtext, tex(text))], []
        literal = nodes.literal(rawtext, text, classes=["py"])
        environment = inliner.document.settings.env
        target = known(environment, text.removesuffix("()"))
        if target is None:
            return [literal], []
        link = addnodes.pending_xref(
            rawtext,
            literal,
            refdomain="py",
            reftype="obj",
            reftarget=target,
            refexplicit=True,
            refdoc=environment.docname,
        )
        return [link], []

    def known(environment, text):
        import interface

        names = interface.full_names()
        room = environment.ref_context.get("py:module", "bwflow")
        for full in (text, f"{room}.{text}", f"bwflow.{text}"):
            if full in names:
                return full
        return None

    def set_off(app, what, name, object_, options, lines):
        if what == "attribute":
            lines.insert(0, "")  # or what is before a colon is taken for a type
        # Several names in one line are not a type and a name.
        lines[:] = [re.sub(r", (?=\w)", "/", x) if NAMES.fullmatch(x) else x for x in lines]
        sections = [i for i, line in enumerate(lines) if set(line) == {"-"} and line]
        end = sections[0] - 1 if sections else len(lines)
        lines[:end] = displayed(lines[:end])

    app.add_role("formula", role)
    # Before napoleon, which knows the sections.
    app.connect("autodoc-process-docstring", set_off, priority=400)
    return {"parallel_read_safe": True}
