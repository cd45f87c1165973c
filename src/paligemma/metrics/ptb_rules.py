"""The kinds of token of the Penn Treebank tokeniser of Stanford CoreNLP 3.4.1, as patterns.

They were derived from the answers of that program to millions of strings; see
`tests/metrics/data/README.md`. Where several kinds fit at one place the longest wins, counting the
text that must follow the token; among equals the first kind in `TOKEN_KINDS` wins.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from paligemma.metrics.ptb_characters import DIGITS, LETTERS, MARKS, SYMBOLS

# Abbreviations that may end a sentence, and those of them that need a capital; abbreviations that
# lead on to a name; those that only count before a number.
_CLOSING = (
    "al co ct ga jr ky md mo rd rt sq sr va vt ala apr aug bhd cos dak dec esq est etc ext feb "
    "fla fri inc ind jan jul jun kan ltd mar mon neb nev nov oct plc sep seq sys tel thu tue wed "
    "wis wyo ariz assn bldg blvd bros colo conn corp intl kans mich minn mont okla penn sept tenn "
    "tues univ wisc thurs ed.d ph.d"
)
_CLOSING_WITH_CAPITAL = "az la pa ark del ill ore tex mass miss wash"
_LEADING = (
    "cf dr ft lt mr ms mt ph st vs wm adj adm adv ave cie col cpl det drs ens gen gov hon jos maj "
    "mme mrs pfc pvt rep rev sen sfc sgt spc ste alex asst atty brig capt cmdr dept elec govs "
    "insp invt mlle msgr natl pres prof reps sens supt assoc"
)
_NUMBERED = "ca no op pp art fig nos figs prop"
# Words that begin a sentence: an initial before them loses its full stop to the sentence.
_STARTERS = (
    "a an as at he if in it so we but her now one our she the yet you here last many more once "
    "some such that then they this what when about according additionally after earlier however "
    "other since their there these while"
)
_FILE_TYPES = (
    "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php "
    "pl png ppt ps py sql tar txt wav x xml zip"
)
_SPELT = "s&ls s&amp;ls e'er nor'easter ev'ry li'l nat'l cap'n s'mores c'mon"

Rewrite = Callable[[str], str]


@dataclass(frozen=True)
class Kind:
    """One kind of token.

    Attributes:
        starts: pattern of its first character.
        pattern: pattern whose first group is the token; the text behind the group must follow.
    """

    starts: re.Pattern[str]
    pattern: re.Pattern[str]
    rewrite: Rewrite


def _kind(starts: str, token: str, then: str = "", rewrite: Rewrite = str) -> Kind:
    return Kind(re.compile(starts), re.compile(f"({token}){then}"), rewrite)


def _in_any_case(words: str) -> str:
    """Build a pattern of words separated by spaces, the longest first."""
    longest_first = sorted(words.split(), key=len, reverse=True)
    spelt = (
        "".join(f"[{c}{c.upper()}]" if c.isalpha() else re.escape(c) for c in word)
        for word in longest_first
    )
    return f"(?:{'|'.join(spelt)})"


def _capitalised(words: str) -> str:
    """Build the same pattern with a capital first letter."""
    return f"(?:{'|'.join(w[0].upper() + _in_any_case(w[1:] or ' ') for w in words.split())})"


def _replaced(text: str, *, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text


def _as(token: str) -> Rewrite:
    return lambda text: token


# A space inside of a token does not separate.
_whole = partial(_replaced, pairs={" ": "\u00a0"})
_bracketed = partial(_replaced, pairs={"(": "-lrb-", ")": "-rrb-", " ": "\u00a0"})
_without_soft_hyphens = partial(_replaced, pairs={"\u00ad": ""})
_ampersand = partial(_replaced, pairs={"&amp;": "&", "&AMP;": "&"})
_ASCII_QUOTES = {
    **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"),
    **dict.fromkeys("\u0092\u2019\u203a", "'"),
    **dict.fromkeys("\u0093\u201c\u00ab", "``"),
    **dict.fromkeys("\u0094\u201d\u00bb", "''"),
    "&apos;": "'",
}
_in_ascii = partial(_replaced, pairs=_ASCII_QUOTES)
_SYMBOL_TOKENS = {
    **_ASCII_QUOTES,
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "&quot;": "''",
    '"': "''",
    "\u0085": "...",
    "\u2026": "...",
    "\u00a2": "cents",
    "\u00a3": "#",
    **dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$"),
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
}


def _symbol(text: str) -> str:
    return _SYMBOL_TOKENS.get(text, text)


_LETTER, _DIGIT, _EITHER = f"[{LETTERS}]", f"[{DIGITS}]", f"[{LETTERS}{DIGITS}]"
_LATIN, _ALNUM = "[A-Za-z]", "[A-Za-z0-9]"
_SPACE = "[ \t\n\u00a0\u2000-\u200a\u3000]"
_BLANK = "[ \t\n\u00a0]"
_GAP = "[- \u00a0]"
_INSIDE_SENTENCE = "[,;:\u3001]"

# A soft hyphen continues words and numbers.
_WORD_START = f"[{LETTERS}{MARKS}\u00ad&]"
_WORD_LETTER = f"(?:[{LETTERS}{MARKS}\u00ad]|&[aeiouAEIOU]{_in_any_case('acute grave uml')};)"
_WORD_PART = f"{_WORD_LETTER}(?:{_WORD_LETTER}|{_DIGIT})*"
_WORD = f"{_WORD_PART}(?:[.!?]{_WORD_PART})*"
_NAME = f"(?:{_WORD_LETTER}|{_DIGIT})+"

_APOS = f"&{_in_any_case('apos')};"
_APOSTROPHE = f"(?:['\u0092\u2019]|{_APOS})"
_APOSTROPHE_START = "['\u0092\u2019&]"
_QUOTE = f"(?:['\u0092\u2019`\u0091\u2018\u201b]|{_APOS})"
_QUOTES = "[`\u0091-\u0094\u00ab\u00bb\u2018-\u201f\u2039\u203a]"
_CLITIC = f"{_APOSTROPHE}(?:[msdMSD]|[rRvV][eE]|[lL][lL])"
_NOT = f"[nN]{_QUOTE}[tT]"
_ELIDED = f"(?:[dDoOlL]{_QUOTE}{_EITHER})?"

_COMPOUND = f"{_ELIDED}{_EITHER}+(?:[-_\u058a\u2010\u2011]{_ELIDED}{_EITHER}+)*"
_ACRONYM = rf"{_LATIN}(?:\.{_LATIN})+\."
_DOTTED_COMPOUND = rf"{_ALNUM}[A-Za-z0-9.,\u00ad]*(?:-(?:{_ACRONYM}|[A-Za-z0-9\u00ad]+))+"
_SIDE = f"{_ALNUM}+(?:-{_LATIN}+){{0,2}}"

_NUMBER = f"[-+]?(?:{_DIGIT}*(?:[.:,\u00ad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
_FRACTION = rf"(?:{_DIGIT}{{1,4}}{_GAP})?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}"
_DATE = f"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}"
_RAISED = "[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
_LOWERED = "[\u208a\u208b]?[\u2080-\u2089]+"
_TELEPHONE = (
    rf"(?:\([0-9]{{2,3}}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{{2,4}}{_GAP})?[0-9]{{2,4}}{_GAP})"
    rf"[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}"
    r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
)

# The range from , to _ holds the capitals too: an address with capitals is none.
_HOST = r"""[^ \t\n\f\r"`'<>|.!?(){},-_$]"""
_PATH = r"""(?:/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-])?"""
_URL = (
    rf"{_in_any_case('http https')}://"
    r"""(?:[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},-]|[\U00010000-\U0010ffff])"""
)
_MAIL = r"""[^ \t\n\f\r"<>|(){}.\u00a0]+"""
_ADDRESS = rf"""(?:<|&lt;)?{_ALNUM}[^ \t\n\f\r"<>|(){{}}\u00a0]*@(?:{_MAIL}\.)*{_MAIL}(?:>|&gt;)?"""
_TAG_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = (
    rf"<(?:[!?][A-Za-z-][^>]*|/{_TAG_NAME}[ ]*"
    rf"""|{_TAG_NAME}(?:[ ]+{_TAG_NAME}(?:[ ]*=[ ]*(?:'[^']*'|"[^"]*"))?)*[ ]*/?[ ]*)>"""
)

_DASH = f"&{_in_any_case('md mdash ndash')};|[^&]"
# How smileys look upright and lying on their side.
_EYES_AND_MOUTH = r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]"
_FACE = r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)"

_CLOSING_PATTERN = (
    rf"(?:{_in_any_case(_CLOSING)}|{_capitalised(_CLOSING_WITH_CAPITAL)}"
    r"|[Pp]{1,2}[Tt][ey][Ss]?)\."
)

_SENTENCE_START = rf"(?:{_capitalised(_STARTERS)}|M[rsRS]\.|{_TAG})"


def _www(label: str) -> str:
    return rf"[wW]{{3}}\.(?:{label}+\.)+[a-zA-Z]{{2,4}}{_PATH}"


TOKEN_KINDS = (
    _kind("[cC]", _in_any_case("can"), _in_any_case("not")),
    _kind("[gGwW]", _in_any_case("gon wan"), _in_any_case("na")),
    _kind("[gG]", _in_any_case("got"), _in_any_case("ta")),
    _kind("[gGlL]", _in_any_case("lem gim"), _in_any_case("me")),
    _kind("'", "'[tT]", _in_any_case("is was")),
    _kind("<", _TAG, rewrite=_whole),
    _kind("[&\u0096\u0097\u2013-\u2015]", _DASH, rewrite=_as("--")),
    _kind("&", f"&{_in_any_case('amp')};", rewrite=_as("&")),
    _kind("&", f"&(?:{_in_any_case('ht tl ur lr qc ql qr odq cdq')}|#[0-9]+);"),
    # Words, and what clitics leave of them.
    _kind(_WORD_START, _WORD, _CLITIC, _without_soft_hyphens),
    _kind(
        "[A-Za-z\u00ad]",
        "[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*",
        _NOT,
        _without_soft_hyphens,
    ),
    _kind(_WORD_START, _WORD, rewrite=_without_soft_hyphens),
    _kind("[dDjJlLoO]", f"(?:[dDjJlL]|[oO][lL]){_APOSTROPHE}"),
    _kind("[dDsS]", f"{_in_any_case('dunkin somethin')}{_APOSTROPHE}"),
    _kind("[cC]", f"[cC]{_APOSTROPHE}{_in_any_case('est')}"),
    _kind(_LATIN, _in_any_case(_SPELT), rewrite=_ampersand),
    _kind(
        _APOSTROPHE_START,
        f"{_APOSTROPHE}(?:{_in_any_case('em cause til till')}|[nN]{_APOSTROPHE}?|[2-9]0[sS])",
    ),
    _kind(_APOSTROPHE_START, f"{_APOSTROPHE}[0-9]{{2}}", _BLANK),
    _kind("[A-HJ-XZn]", f"[A-HJ-XZn]{_QUOTE}{_LETTER}{{2,}}"),
    _kind(_LETTER, f"{_LETTER}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]{_LETTER}*|[oO]{_QUOTE}[oO]"),
    _kind("[yY]", f"[yY]{_APOSTROPHE}", _LETTER),
    # The net.
    _kind("[hH]", _URL),
    # Which labels make the longest depends on what follows.
    _kind("[wW]", _www(r"""[^ \t\n\f\r"<>|.!?(){},]""")),
    _kind("[wW]", _www(r"""[^ \t\n\f\r"<>|.!?(){},/]""")),
    _kind(_HOST, rf"(?:{_HOST}+\.)+{_in_any_case('com net org edu')}{_PATH}"),
    _kind("[A-Za-z0-9<&]", _ADDRESS),
    _kind("@", "@[a-zA-Z_][a-zA-Z_0-9]*"),
    _kind("#", f"#{_WORD_LETTER}+"),
    _kind(_APOSTROPHE_START, _CLITIC, "[^A-Za-z]", _in_ascii),
    _kind("[nN]", _NOT, rewrite=_in_ascii),
    # Numbers.
    _kind(_DIGIT, _DATE),
    _kind(f"[-+.:,\u00ad\u066b\u066c{DIGITS}]", _NUMBER, rewrite=_without_soft_hyphens),
    _kind("[\u00b2\u00b3\u00b9\u2070-\u208b]", f"{_RAISED}|{_LOWERED}"),
    _kind(_DIGIT, _FRACTION, rewrite=_whole),
    _kind("[cCfF]", r"[cC]\+\+|[cCfF]#"),
    _kind(_ALNUM, rf"{_SIDE}(?:\\?/{_SIDE}){{1,2}}"),
    _kind("[A-Z$#]", r"[A-Z]*\$|#"),
    # Abbreviations. Of what follows those that may end a sentence two characters count.
    _kind(_LATIN, _CLOSING_PATTERN, r"[\s\S]{0,2}"),
    _kind(_LATIN, rf"(?:{_in_any_case(_LEADING)}|[Mm][ft][Gg])\."),
    _kind(_LATIN, rf"{_in_any_case(_NUMBERED)}\.", f"[ \u00a0\n]?{_DIGIT}"),
    _kind(_LATIN, rf"{_ACRONYM}|{_LATIN}\."),
    _kind(_LATIN, _LATIN, rf"\.{_SPACE}+{_SENTENCE_START}{_BLANK}"),
    _kind(_SPACE, f"{_SPACE}+", rewrite=_as("")),
    _kind(
        f"{_DIGIT}|{_WORD_START}",
        rf"{_NAME}(?:\.{_NAME})*\.{_in_any_case(_FILE_TYPES)}",
        "[ \t\n\u00a0.?!,]",
    ),
    # Compounds.
    _kind(_WORD_START, rf"{_WORD}\.", _INSIDE_SENTENCE, _without_soft_hyphens),
    _kind(_EITHER, rf"{_COMPOUND}\.", _INSIDE_SENTENCE),
    _kind(_EITHER, _COMPOUND),
    _kind(_ALNUM, rf"{_DOTTED_COMPOUND}\.", _INSIDE_SENTENCE, _without_soft_hyphens),
    _kind(_ALNUM, _DOTTED_COMPOUND, rewrite=_without_soft_hyphens),
    _kind("[A-Z]", "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", rewrite=_ampersand),
    _kind(r"[(+0-9]", _TELEPHONE, rewrite=_bracketed),
    # Signs.
    _kind("[<>:;=]", _EYES_AND_MOUTH, "[^A-Za-z0-9]", _bracketed),
    _kind("[-^x=~<>'(]", _FACE, rewrite=_bracketed),
    _kind(_QUOTES, f"{_QUOTES}{{1,2}}", rewrite=_in_ascii),
    _kind("'", "'", "[A-Za-z][^ \t\n\u00a0]", _as("`")),
    _kind(_APOSTROPHE_START, _CLITIC, rewrite=_in_ascii),
    _kind("-", "-{2,4}", rewrite=_as("--")),
    _kind("[-_#@*<>\\\\]", r"-{5,}|__+|##+|@@+|\*\*+|(?:\\\*){1,3}|<<|>>"),
    _kind("-", "-[lLrR][rRsScC][bB]-"),
    _kind(r"\.", r"\.{3,5}|(?:\. ){2,4}\.", rewrite=_as("...")),
    _kind("[?!]", "[?!]+"),
    _kind("&", f"&{_in_any_case('nbsp')};", rewrite=_as("")),
    _kind("&", f"&{_in_any_case('lt')};", rewrite=_as("<")),
    _kind("&", f"&{_in_any_case('gt')};", rewrite=_as(">")),
    _kind("['&]", f"''|&{_in_any_case('quot apos')};", rewrite=_symbol),
    _kind(".", f"[{SYMBOLS}\u0085]", rewrite=_symbol),
)


@lru_cache(maxsize=1 << 14)
def kinds_from(first: str) -> tuple[Kind, ...]:
    """List the kinds that can begin with this character, in order."""
    return tuple(kind for kind in TOKEN_KINDS if kind.starts.match(first))
